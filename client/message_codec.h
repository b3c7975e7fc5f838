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

// Copies the elements.
void EncodeTensor(const ConstTensor& tensor, v1::Tensor* proto);

void EncodeOptions(const AttentionOptions& options, bool return_lse,
                   v1::AttentionOptions* proto);

v1::BenchmarkRequest EncodeBenchmark(const BenchmarkOptions& options);

v1::MemoryEstimateRequest EncodeEstimate(const MemoryEstimateOptions& options);

// Writes the answer's elements to `target`. INVALID_ARGUMENT where there are
// more or fewer than it holds, INTERNAL where the answer contradicts itself.
// `name` is what an error calls it.
absl::Status DecodeTensor(const v1::Tensor& proto, absl::string_view name,
                          std::span<float> target);

BenchmarkResult DecodeBenchmark(const v1::BenchmarkResult& proto);

MemoryEstimate DecodeEstimate(const v1::MemoryEstimateResponse& proto);

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& proto);

ExecutionStats DecodeStats(const v1::ExecutionStats& proto);

// Any of the three responses, whose fields are alike.
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

}  // namespace attnd::client

#endif  // ATTND_CLIENT_MESSAGE_CODEC_H_
