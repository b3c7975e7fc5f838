#include "server/response_codec.h"

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/wire_format_lite.h"

namespace attnd::server {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;

google::protobuf::Duration ToDuration(std::chrono::nanoseconds time) {
  google::protobuf::Duration duration;
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(time);
  duration.set_seconds(seconds.count());
  duration.set_nanos(static_cast<int32_t>((time - seconds).count()));
  return duration;
}

v1::DataType WireType(DataType type) {
  switch (type) {
    case DataType::kF32:
      return v1::DATA_TYPE_F32;
    case DataType::kF16:
      return v1::DATA_TYPE_F16;
    case DataType::kBF16:
      return v1::DATA_TYPE_BF16;
  }
  return v1::DATA_TYPE_UNSPECIFIED;
}

v1::Tensor TensorHeader(const ResponseTensor& tensor) {
  v1::Tensor header;
  header.set_dtype(WireType(tensor.dtype));
  header.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  return header;
}

// Tag and length of a length-delimited field.
std::string FieldPrefix(int number, size_t length) {
  std::string prefix;
  StringOutputStream stream(&prefix);
  CodedOutputStream out(&stream);
  out.WriteTag(WireFormatLite::MakeTag(
      number, WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
  out.WriteVarint64(length);
  out.Trim();
  return prefix;
}

// A Tensor whose last field is its data, which stays where it is.
void AppendTensor(const ResponseTensor& tensor,
                  const std::shared_ptr<const void>& owner,
                  ResponsePieces& pieces) {
  const absl::string_view data(
      reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
  if (tensor.place) {
    v1::Tensor message = TensorHeader(tensor);
    *message.mutable_shared_memory() = *tensor.place;
    std::string text = message.SerializeAsString();
    pieces.push_back(
        OwnedPiece(FieldPrefix(tensor.field_number, text.size()) + text));
    return;
  }
  std::string header = TensorHeader(tensor).SerializeAsString();
  header += FieldPrefix(v1::Tensor::kDataFieldNumber, data.size());
  pieces.push_back(OwnedPiece(
      FieldPrefix(tensor.field_number, header.size() + data.size()) + header));
  if (!data.empty()) pieces.push_back({.bytes = data, .owner = owner});
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

void AppendField(int number, const google::protobuf::Message& message,
                 std::string& text) {
  text += FieldPrefix(number, message.ByteSizeLong());
  message.AppendToString(&text);
}

// One message at a time, so that an answer is held no more than thrice: as the
// kernel's output, as a message and as text.
std::string TextOfValues(const AttentionAnswer& answer) {
  size_t bytes = kMessageEnvelopeBytes;
  for (const ResponseTensor& tensor : answer.tensors) {
    bytes += tensor.data.size();
  }
  std::string text;
  text.reserve(bytes);
  for (const ResponseTensor& tensor : answer.tensors) {
    AppendField(tensor.field_number, WithValues(tensor), text);
  }
  AppendField(answer.stats_field_number, EncodeStats(answer.stats), text);
  return text;
}

}  // namespace

v1::ExecutionStats EncodeStats(const RunStats& stats) {
  v1::ExecutionStats message;
  message.set_isa(std::string(IsaName(stats.isa)));
  message.set_kernel(std::string(stats.kernel));
  message.set_tile_q(stats.tile_q);
  message.set_tile_kv(stats.tile_kv);
  message.set_threads(stats.threads);
  *message.mutable_queue_time() = ToDuration(stats.queue_time);
  *message.mutable_compute_time() = ToDuration(stats.compute_time);
  message.set_flops(stats.flops);
  message.set_workspace_bytes(stats.workspace_bytes);
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
  const std::string head = chunk.SerializeAsString() +
                           FieldPrefix(v1::TensorChunk::kDataFieldNumber, size);
  return {
      OwnedPiece(FieldPrefix(v1::AttentionStreamResponse::kChunkFieldNumber,
                             head.size() + size) +
                 head),
      {.bytes = absl::string_view(
           reinterpret_cast<const char*>(tensor.data.data()) + offset, size),
       .owner = std::move(owner)}};
}

ResponsePieces EncodeStreamStats(const RunStats& stats) {
  v1::AttentionStreamResponse message;
  *message.mutable_stats() = EncodeStats(stats);
  return SerializePieces(message);
}

ResponsePieces EncodeAnswer(const AttentionAnswer& answer, PayloadKind kind,
                            std::shared_ptr<const void> owner) {
  if (kind == PayloadKind::kValues) {
    // The numbers are copied; the owner also stands for the memory budget that
    // the answer holds until it is sent.
    using Text = std::pair<std::string, std::shared_ptr<const void>>;
    const auto text =
        std::make_shared<Text>(TextOfValues(answer), std::move(owner));
    return ResponsePieces{{.bytes = text->first, .owner = text}};
  }
  ResponsePieces pieces;
  for (const ResponseTensor& tensor : answer.tensors) {
    AppendTensor(tensor, owner, pieces);
  }
  std::string stats;
  AppendField(answer.stats_field_number, EncodeStats(answer.stats), stats);
  pieces.push_back(OwnedPiece(std::move(stats)));
  return pieces;
}

}  // namespace attnd::server
