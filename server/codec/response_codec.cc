#include "server/codec/response_codec.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "google/protobuf/arena.h"
#include "proto/message_pieces.h"

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

// A message that is written from front to back: text in as few pieces as can
// be, large data where it lies. All pieces keep `owner`, which also stands for
// the memory budget that an answer holds until it is sent.
class PieceWriter {
 public:
  explicit PieceWriter(std::shared_ptr<const void> owner)
      : owner_(std::move(owner)) {}

  // To append to.
  std::string& text() { return text_; }

  void Append(absl::string_view data) {
    if (data.size() < kSmallestPieceBytes) {
      text_.append(data.data(), data.size());
      return;
    }
    EndText();
    pieces_.push_back({.bytes = data, .owner = owner_});
  }

  ResponsePieces Finish() {
    EndText();
    return std::move(pieces_);
  }

 private:
  void EndText() {
    if (text_.empty()) return;
    using Text = std::pair<std::string, std::shared_ptr<const void>>;
    const auto text =
        std::make_shared<Text>(std::exchange(text_, std::string()), owner_);
    pieces_.push_back({.bytes = text->first, .owner = text});
  }

  std::shared_ptr<const void> owner_;
  std::string text_;
  ResponsePieces pieces_;
};

absl::string_view View(std::span<const std::byte> data) {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

// A Tensor whose last field is its data.
void AppendTensor(const ResponseTensor& tensor, google::protobuf::Arena& arena,
                  PieceWriter& to) {
  auto& header = *google::protobuf::Arena::CreateMessage<v1::Tensor>(&arena);
  Describe(tensor, header);
  if (tensor.place) {
    *header.mutable_shared_memory() = *tensor.place;
    AppendField(tensor.field_number, header, to.text());
    return;
  }
  const size_t data_bytes = tensor.data.size();
  const size_t header_bytes = header.ByteSizeLong();
  AppendPrefix(tensor.field_number,
               header_bytes +
                   PrefixBytes(v1::Tensor::kDataFieldNumber, data_bytes) +
                   data_bytes,
               to.text());
  AppendCounted(header, header_bytes, to.text());
  AppendPrefix(v1::Tensor::kDataFieldNumber, data_bytes, to.text());
  to.Append(View(tensor.data));
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

ResponsePieces EncodeStreamHeader(const std::vector<ResponseTensor>& tensors) {
  v1::AttentionStreamResponse message;
  v1::AttentionResponse& header = *message.mutable_header();
  for (const ResponseTensor& tensor : tensors) {
    const bool lse =
        tensor.field_number == v1::AttentionResponse::kLseFieldNumber;
    *(lse ? header.mutable_lse() : header.mutable_output()) =
        TensorHeader(tensor);
  }
  return SerializePieces(message);
}

ResponsePieces EncodeChunk(const ResponseTensor& tensor, size_t offset,
                           size_t size, std::shared_ptr<const void> owner) {
  const bool lse =
      tensor.field_number == v1::AttentionResponse::kLseFieldNumber;
  v1::TensorChunk chunk;
  chunk.set_role(lse ? v1::TENSOR_ROLE_LSE : v1::TENSOR_ROLE_OUTPUT);
  chunk.set_offset_bytes(static_cast<int64_t>(offset));
  PieceWriter writer(std::move(owner));
  AppendPrefix(v1::AttentionStreamResponse::kChunkFieldNumber,
               chunk.ByteSizeLong() +
                   PrefixBytes(v1::TensorChunk::kDataFieldNumber, size) + size,
               writer.text());
  chunk.AppendToString(&writer.text());
  AppendPrefix(v1::TensorChunk::kDataFieldNumber, size, writer.text());
  writer.Append(View(tensor.data.subspan(offset, size)));
  return writer.Finish();
}

ResponsePieces EncodeStreamStats(const RunStats& stats) {
  v1::AttentionStreamResponse message;
  *message.mutable_stats() = EncodeStats(stats);
  return SerializePieces(message);
}

ResponsePieces EncodeAnswer(const AttentionAnswer& answer, PayloadKind kind,
                            std::shared_ptr<const void> owner) {
  // The parts of a small answer all lie here.
  alignas(8) char block[1024];
  google::protobuf::Arena arena(block, sizeof(block));
  PieceWriter writer(std::move(owner));
  size_t text_bytes = 256;  // beside the elements, mostly
  for (const ResponseTensor& tensor : answer.tensors) {
    const size_t data_bytes = tensor.data.size();
    const bool is_text =
        kind == PayloadKind::kValues || data_bytes < kSmallestPieceBytes;
    if (is_text) text_bytes += data_bytes;
  }
  writer.text().reserve(text_bytes);
  // Numbers go one message at a time, so that an answer is held no more than
  // thrice: as the kernel's output, as a message and as text.
  for (const ResponseTensor& tensor : answer.tensors) {
    if (kind == PayloadKind::kValues) {
      AppendField(tensor.field_number, WithValues(tensor), writer.text());
    } else {
      AppendTensor(tensor, arena, writer);
    }
  }
  auto& stats =
      *google::protobuf::Arena::CreateMessage<v1::ExecutionStats>(&arena);
  Describe(answer.stats, stats);
  AppendField(answer.stats_field_number, stats, writer.text());
  return writer.Finish();
}

}  // namespace attnd::server
