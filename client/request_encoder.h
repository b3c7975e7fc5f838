// Plain values to the contract's requests; tensors' bytes pass protobuf by.
// Knows protobuf, not gRPC; repeats none of the server's rules.
#ifndef ATTND_CLIENT_REQUEST_ENCODER_H_
#define ATTND_CLIENT_REQUEST_ENCODER_H_

#include "attnd/v1/attention.pb.h"
#include "client/outgoing_message.h"
#include "client/types.h"

namespace attnd::client {

v1::DataType EncodeType(DataType type);

void EncodePlace(const SharedPlace& place, v1::SharedMemory* proto);

// A tensor as the field `number` of `message`; of one in shared memory the
// place is sent.
void AddTensor(int number, const ConstTensor& tensor, OutgoingMessage* message);

// The options as the field `number` of `message`. `asked` holds what the call's
// outputs ask for.
void AddOptions(int number, const AttentionOptions& options,
                v1::AttentionOptions asked, OutgoingMessage* message);

// A call without any tensor's elements. `asked` as above.
v1::AttentionRequest DescribeRequest(const AttentionInputs& inputs,
                                     const AttentionOptions& options,
                                     v1::AttentionOptions asked);

v1::BenchmarkRequest EncodeBenchmark(const BenchmarkOptions& options);

v1::MemoryEstimateRequest EncodeEstimate(const MemoryEstimateOptions& options);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_REQUEST_ENCODER_H_
