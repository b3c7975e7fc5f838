// Plain values to the contract's messages and back. Knows protobuf, not gRPC;
// repeats none of the server's rules.
#ifndef ATTND_CLIENT_MESSAGE_CODEC_H_
#define ATTND_CLIENT_MESSAGE_CODEC_H_

#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "client/types.h"

namespace attnd::client {

// Copies the elements, but for those in shared memory.
void EncodeTensor(const ConstTensor& tensor, v1::Tensor* proto);

v1::DataType EncodeType(DataType type);

void EncodePlace(const SharedPlace& place, v1::SharedMemory* proto);

// Copies the elements of bias and mask too.
void EncodeOptions(const AttentionOptions& options,
                   v1::AttentionOptions* proto);

v1::BenchmarkRequest EncodeBenchmark(const BenchmarkOptions& options);

v1::MemoryEstimateRequest EncodeEstimate(const MemoryEstimateOptions& options);

// Writes the answer's elements to `target`, unless the server has.
// INVALID_ARGUMENT where there are more or fewer than it holds, INTERNAL where
// the answer contradicts itself or is of another type. `name` is what an error
// calls it.
absl::Status DecodeTensor(const v1::Tensor& proto, absl::string_view name,
                          const Elements& target);

BenchmarkResult DecodeBenchmark(const v1::BenchmarkResult& proto);

MemoryEstimate DecodeEstimate(const v1::MemoryEstimateResponse& proto);

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& proto);

ExecutionStats DecodeStats(const v1::ExecutionStats& proto);

// Any of the three forward responses, whose fields are alike.
template <typename Response>
absl::StatusOr<AttentionReply> DecodeReply(const Response& response,
                                           const AttentionOutputs& outputs) {
  AttentionReply reply;
  if (absl::Status status =
          DecodeTensor(response.output(), "output", outputs.output);
      !status.ok()) {
    return status;
  }
  reply.output_shape.assign(response.output().shape().begin(),
                            response.output().shape().end());
  if (outputs.lse) {
    if (absl::Status status = DecodeTensor(response.lse(), "lse", *outputs.lse);
        !status.ok()) {
      return status;
    }
    reply.lse_shape.assign(response.lse().shape().begin(),
                           response.lse().shape().end());
  }
  reply.stats = DecodeStats(response.stats());
  return reply;
}

absl::StatusOr<ExecutionStats> DecodeReply(
    const v1::AttentionBackwardResponse& response,
    const BackwardOutputs& outputs);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_MESSAGE_CODEC_H_
