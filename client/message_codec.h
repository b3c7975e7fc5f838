// Plain values to the contract's messages and back; tensors' bytes pass
// protobuf by. Knows protobuf, not gRPC; repeats none of the server's rules.
#ifndef ATTND_CLIENT_MESSAGE_CODEC_H_
#define ATTND_CLIENT_MESSAGE_CODEC_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "client/outgoing_message.h"
#include "client/types.h"
#include "google/protobuf/io/zero_copy_stream.h"

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

BenchmarkResult DecodeBenchmark(const v1::BenchmarkResult& proto);

MemoryEstimate DecodeEstimate(const v1::MemoryEstimateResponse& proto);

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& proto);

ExecutionStats DecodeStats(const v1::ExecutionStats& proto);

// Whether an answer's tensor `header`, of `size_bytes` bytes, is of the type
// that `target` has and fills it: else INTERNAL or INVALID_ARGUMENT, which
// calls the tensor `name`.
absl::Status CheckAnswer(absl::string_view name, const v1::Tensor& header,
                         uint64_t size_bytes, const Elements& target);

// Reads the answer to a call, of which the three forward ones have equal
// fields, and writes its elements to `outputs`, in one copy. INVALID_ARGUMENT
// where there are more or fewer than those hold, INTERNAL where the answer does
// not parse, contradicts itself or is of another type.
absl::StatusOr<AttentionReply> ReadReply(
    google::protobuf::io::ZeroCopyInputStream* answer,
    const AttentionOutputs& outputs);
absl::StatusOr<ExecutionStats> ReadReply(
    google::protobuf::io::ZeroCopyInputStream* answer,
    const BackwardOutputs& outputs);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_MESSAGE_CODEC_H_
