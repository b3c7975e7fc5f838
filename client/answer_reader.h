// The contract's answers to plain values; tensors' bytes pass protobuf by.
// Trusts nothing that a server says. Knows protobuf, not gRPC.
#ifndef ATTND_CLIENT_ANSWER_READER_H_
#define ATTND_CLIENT_ANSWER_READER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "client/types.h"
#include "google/protobuf/io/zero_copy_stream.h"

namespace attnd::client {

// What the answer to a forward call has to be: its shapes, and where its
// elements go.
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

// Reads the answer to a call and copies its elements, once, to the outputs of
// `expected`. The answers of the three forward calls have equal fields.
// INVALID_ARGUMENT if the outputs have room for more or fewer elements.
// INTERNAL if the answer does not parse, contradicts itself, or has another
// type or shape.
absl::StatusOr<AttentionReply> ReadReply(
    google::protobuf::io::ZeroCopyInputStream* answer,
    const ForwardAnswer& expected);
absl::StatusOr<ExecutionStats> ReadReply(
    google::protobuf::io::ZeroCopyInputStream* answer,
    const BackwardAnswer& expected);

// Where the next `size_bytes` of data of a chunk go, of which `place` is all
// that came before them; or why they are not wanted.
using ChunkRoom = std::function<absl::StatusOr<std::span<std::byte>>(
    const v1::TensorChunk& place, size_t size_bytes)>;

// Reads one message of AttentionStream's answer; a chunk's data goes to `room`,
// in one copy, and is not in what this returns. INTERNAL where the message does
// not parse or is more than one of header, chunk and stats.
absl::StatusOr<v1::AttentionStreamResponse> ReadStreamed(
    google::protobuf::io::ZeroCopyInputStream* message, const ChunkRoom& room);

// Checks one tensor of an answer. INTERNAL if `header` has another shape than
// `shape` or another type than `target`, or if `data_bytes`, the size of its
// data once that is here, does not fit the shape. INVALID_ARGUMENT if `target`
// has room for more or fewer elements. Errors call the tensor `name`.
absl::Status CheckAnswer(absl::string_view name, const v1::Tensor& header,
                         const Elements& target,
                         const std::vector<int64_t>& shape,
                         std::optional<uint64_t> data_bytes = std::nullopt);

BenchmarkResult DecodeBenchmark(const v1::BenchmarkResult& proto);

MemoryEstimate DecodeEstimate(const v1::MemoryEstimateResponse& proto);

absl::StatusOr<ServerInfo> ReadServerInfo(
    google::protobuf::io::ZeroCopyInputStream* answer);

ExecutionStats DecodeStats(const v1::ExecutionStats& proto);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ANSWER_READER_H_
