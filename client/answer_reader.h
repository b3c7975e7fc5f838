// Reads the answers of a server, and trusts nothing in them. A tensor's
// elements are copied once, from the buffers of the network to the caller's
// memory.
#ifndef ATTND_CLIENT_ANSWER_READER_H_
#define ATTND_CLIENT_ANSWER_READER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "client/types.h"
#include "wire/received_message.h"

namespace attnd::client {

// What the answer to a forward call must be: its shapes, and the memory for its
// elements.
struct ForwardAnswer {
  AttentionOutputs outputs;
  std::vector<int64_t> output_shape;
  std::vector<int64_t> lse_shape;
};

ForwardAnswer AnswerTo(const AttentionInputs& inputs,
                       const AttentionOptions& options,
                       const AttentionOutputs& outputs);

// The same for a backward call.
struct BackwardAnswer {
  BackwardOutputs outputs;
  std::vector<int64_t> query_shape;
  std::vector<int64_t> key_shape;
  std::vector<int64_t> value_shape;
};

BackwardAnswer AnswerTo(const BackwardInputs& inputs,
                        const BackwardOutputs& outputs);

// Reads the answer to a call and copies its elements to the outputs of
// `expected`. The answers of the three forward calls have equal fields. Returns
// INTERNAL if the answer does not parse, contradicts itself, or has another
// type or shape, and INVALID_ARGUMENT if an output has another size than the
// answer. In both cases the outputs are unchanged.
absl::StatusOr<AttentionReply> ReadReply(const ReceivedMessage& answer,
                                         const ForwardAnswer& expected);
absl::StatusOr<ExecutionStats> ReadReply(const ReceivedMessage& answer,
                                         const BackwardAnswer& expected);

// A message of AttentionStream's answer. If it is a chunk, `data` is the place
// of the chunk's data in the received message.
struct StreamedAnswer {
  v1::AttentionStreamResponse message;
  PayloadRange data;
};

// Returns INTERNAL if the message does not parse, or if it has data that
// belongs to no chunk or to a second one.
absl::StatusOr<StreamedAnswer> ReadStreamed(const ReceivedMessage& message);

// Checks one tensor of an answer. Returns INTERNAL if `header` has another
// shape than `shape` or another type than `target`, or if `data_bytes`, the
// size of the tensor's data once it is known, does not fit the shape. Returns
// INVALID_ARGUMENT if `target` has another size. Errors call the tensor `name`.
absl::Status CheckAnswer(absl::string_view name, const v1::Tensor& header,
                         const Elements& target,
                         const std::vector<int64_t>& shape,
                         std::optional<int64_t> data_bytes = std::nullopt);

BenchmarkResult DecodeBenchmark(const v1::BenchmarkResult& proto);

MemoryEstimate DecodeEstimate(const v1::MemoryEstimateResponse& proto);

absl::StatusOr<ServerInfo> ReadServerInfo(const ReceivedMessage& answer);

ExecutionStats DecodeStats(const v1::ExecutionStats& proto);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ANSWER_READER_H_
