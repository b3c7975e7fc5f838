#include "server/codec/response_codec.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "google/protobuf/arena.h"

namespace attnd::server {
namespace {

void SetDuration(std::chrono::nanoseconds time,
                 google::protobuf::Duration& duration) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(time);
  duration.set_seconds(seconds.count());
  duration.set_nanos(static_cast<int32_t>((time - seconds).count()));
}

v1::DataType EncodeType(DataType type) {
  return static_cast<v1::DataType>(type);
}

void Describe(const ResponseTensor& tensor, v1::Tensor& header) {
  header.set_dtype(EncodeType(tensor.dtype));
  header.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
}

v1::Tensor TensorHeader(const ResponseTensor& tensor) {
  v1::Tensor header;
  Describe(tensor, header);
  return header;
}

void Describe(const RunStats& stats, v1::ExecutionStats& message) {
  message.set_isa(std::string(IsaName(stats.isa)));
  message.set_kernel(std::string(stats.kernel));
  message.set_tile_q(stats.tile_q);
  message.set_tile_kv(stats.tile_kv);
  message.set_threads(stats.threads);
  SetDuration(stats.queue_time, *message.mutable_queue_time());
  SetDuration(stats.compute_time, *message.mutable_compute_time());
  message.set_flops(stats.flops);
  message.set_workspace_bytes(stats.workspace_bytes);
}

void AddTensor(const ResponseTensor& tensor, google::protobuf::Arena& arena,
               OutgoingMessage& to) {
  auto& header = *google::protobuf::Arena::CreateMessage<v1::Tensor>(&arena);
  Describe(tensor, header);
  if (tensor.place) {
    *header.mutable_shared_memory() = *tensor.place;
    to.AddField(tensor.field_number, header);
  } else {
    to.AddField(tensor.field_number, header, v1::Tensor::kDataFieldNumber,
                tensor.data);
  }
}

v1::Tensor WithValues(const ResponseTensor& tensor) {
  v1::Tensor message = TensorHeader(tensor);
  const std::span<const float> elements(
      reinterpret_cast<const float*>(tensor.data.data()),
      tensor.data.size() / sizeof(float));
  message.mutable_values()->mutable_values()->Add(elements.begin(),
                                                  elements.end());
  return message;
}

}  // namespace

v1::ExecutionStats EncodeStats(const RunStats& stats) {
  v1::ExecutionStats message;
  Describe(stats, message);
  return message;
}

OutgoingMessage EncodeStreamHeader(const std::vector<ResponseTensor>& tensors) {
  v1::AttentionStreamResponse message;
  v1::AttentionResponse& header = *message.mutable_header();
  for (const ResponseTensor& tensor : tensors) {
    const bool lse =
        tensor.field_number == v1::AttentionResponse::kLseFieldNumber;
    *(lse ? header.mutable_lse() : header.mutable_output()) =
        TensorHeader(tensor);
  }
  return OutgoingMessage::Of(message);
}

OutgoingMessage EncodeChunk(const ResponseTensor& tensor, size_t offset,
                            size_t size, std::shared_ptr<const void> owner) {
  const bool lse =
      tensor.field_number == v1::AttentionResponse::kLseFieldNumber;
  v1::TensorChunk chunk;
  chunk.set_role(lse ? v1::TENSOR_ROLE_LSE : v1::TENSOR_ROLE_OUTPUT);
  chunk.set_offset_bytes(static_cast<int64_t>(offset));
  OutgoingMessage message(std::move(owner));
  message.AddField(v1::AttentionStreamResponse::kChunkFieldNumber, chunk,
                   v1::TensorChunk::kDataFieldNumber,
                   tensor.data.subspan(offset, size));
  return message;
}

OutgoingMessage EncodeStreamStats(const RunStats& stats) {
  v1::AttentionStreamResponse message;
  *message.mutable_stats() = EncodeStats(stats);
  return OutgoingMessage::Of(message);
}

OutgoingMessage EncodeAnswer(const AttentionAnswer& answer, PayloadKind kind,
                             std::shared_ptr<const void> owner) {
  // All parts of a small answer fit here, so that malloc is not needed.
  alignas(8) char block[1024];
  google::protobuf::Arena arena(block, sizeof(block));
  OutgoingMessage message(std::move(owner));
  size_t text_bytes = 256;  // enough for most answers, without their elements
  for (const ResponseTensor& tensor : answer.tensors) {
    const size_t data_bytes = tensor.data.size();
    const bool is_text =
        kind == PayloadKind::kValues || data_bytes < kSmallestPieceBytes;
    if (is_text) text_bytes += data_bytes;
  }
  message.Reserve(text_bytes);
  // Numbers are encoded one tensor at a time, so that at most three copies of
  // the answer exist: the output of the kernel, a message and text.
  for (const ResponseTensor& tensor : answer.tensors) {
    if (kind == PayloadKind::kValues) {
      message.AddField(tensor.field_number, WithValues(tensor));
    } else {
      AddTensor(tensor, arena, message);
    }
  }
  auto& stats =
      *google::protobuf::Arena::CreateMessage<v1::ExecutionStats>(&arena);
  Describe(answer.stats, stats);
  message.AddField(answer.stats_field_number, stats);
  return message;
}

}  // namespace attnd::server
