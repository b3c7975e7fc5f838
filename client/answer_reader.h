// Reads the answers of a server. Checks types, shapes and sizes in them,
// because the server may have a bug. The elements of a tensor are copied once,
// from the buffers of the network to the memory of the caller.
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

// The shapes that the answer to a forward call must have, and the memory for
// its elements.
struct ForwardAnswer {
  AttentionOutputs outputs;
  std::vector<int64_t> output_shape;
  std::vector<int64_t> lse_shape;
};

// Returns the shapes that the answer to a forward call with these arguments
// must have, and where its elements go.
ForwardAnswer AnswerTo(const AttentionInputs& inputs,
                       const AttentionOptions& options,
                       const AttentionOutputs& outputs);

// The shapes that the answer to a backward call must have, and the memory for
// its elements.
struct BackwardAnswer {
  BackwardOutputs outputs;
  std::vector<int64_t> query_shape;
  std::vector<int64_t> key_shape;
  std::vector<int64_t> value_shape;
};

// Returns the shapes that the answer to a backward call with these arguments
// must have, and where its elements go.
BackwardAnswer AnswerTo(const BackwardInputs& inputs,
                        const BackwardOutputs& outputs);

// Reads the answer to a call and copies its elements to the outputs in
// `expected`. One function reads the answers of all three forward methods,
// because their messages have equal fields. If there is an error, the outputs
// are unchanged:
// - INTERNAL if the answer does not parse, contradicts itself, or has a type or
//   shape that was not expected;
// - INVALID_ARGUMENT if an output has another size than the answer.
absl::StatusOr<AttentionReply> ReadReply(const ReceivedMessage& answer,
                                         const ForwardAnswer& expected);
absl::StatusOr<ExecutionStats> ReadReply(const ReceivedMessage& answer,
                                         const BackwardAnswer& expected);

// One message of the answer to AttentionStream. If it is a chunk, `data` says
// where in the received message the data of the chunk are.
struct StreamedAnswer {
  v1::AttentionStreamResponse message;
  PayloadRange data;
};

// Reads one message of the answer to AttentionStream. Returns INTERNAL if the
// message does not parse, or if it has data that do not belong to its chunk.
absl::StatusOr<StreamedAnswer> ReadStreamed(const ReceivedMessage& message);

// Checks one tensor of an answer. `header` is the tensor without its data.
// `data_bytes` is the size of the data, if it is known. `target` is the output
// of the caller. Errors call the tensor `name`:
// - INTERNAL if `header` does not have the shape `shape` and the type of
//   `target`, or if `data_bytes` does not fit that shape;
// - INVALID_ARGUMENT if `target` does not have the size of the tensor.
absl::Status CheckAnswer(absl::string_view name, const v1::Tensor& header,
                         const Elements& target,
                         const std::vector<int64_t>& shape,
                         std::optional<int64_t> data_bytes = std::nullopt);

// These convert messages to plain values. ReadServerInfo parses the answer to
// GetServerInfo first, and returns INTERNAL if it does not parse.
BenchmarkResult DecodeBenchmark(const v1::BenchmarkResult& proto);
MemoryEstimate DecodeEstimate(const v1::MemoryEstimateResponse& proto);
ExecutionStats DecodeStats(const v1::ExecutionStats& proto);
absl::StatusOr<ServerInfo> ReadServerInfo(const ReceivedMessage& answer);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ANSWER_READER_H_
