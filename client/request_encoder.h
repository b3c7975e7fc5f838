// Encodes plain values as requests of the contract. The elements of tensors are
// not copied to protobuf messages. Knows protobuf, but not gRPC, and checks
// nothing that the server checks.
#ifndef ATTND_CLIENT_REQUEST_ENCODER_H_
#define ATTND_CLIENT_REQUEST_ENCODER_H_

#include <cstddef>
#include <span>

#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "client/types.h"
#include "wire/outgoing_message.h"

namespace attnd::client {

v1::DataType EncodeType(DataType type);

void EncodePlace(const SharedPlace& place, v1::SharedMemory* proto);

// Returns `bytes` as the wire code takes them.
absl::string_view TextOf(std::span<const std::byte> bytes);

// Adds `tensor` to `message` as its field `number`. Sends only the place of a
// tensor in shared memory. Borrows large elements that have no owner.
void AddTensor(int number, const ConstTensor& tensor, OutgoingMessage* message);

// Adds the options as the field `number` of `message`. `asked` has the options
// that follow from the outputs of the call.
void AddOptions(int number, const AttentionOptions& options,
                v1::AttentionOptions asked, OutgoingMessage* message);

// Returns a request without the elements of its tensors. `asked` is as above.
v1::AttentionRequest DescribeRequest(const AttentionInputs& inputs,
                                     const AttentionOptions& options,
                                     v1::AttentionOptions asked);

v1::BenchmarkRequest EncodeBenchmark(const BenchmarkOptions& options);

v1::MemoryEstimateRequest EncodeEstimate(const MemoryEstimateOptions& options);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_REQUEST_ENCODER_H_
