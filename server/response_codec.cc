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

v1::Tensor TensorHeader(const ResponseTensor& tensor) {
  v1::Tensor header;
  header.set_dtype(v1::DATA_TYPE_F32);
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

// Field `number` of the answer: a Tensor whose last field is its data.
void AppendTensor(int number, const ResponseTensor& tensor,
                  const std::shared_ptr<const void>& owner,
                  ResponsePieces& pieces) {
  const absl::string_view data(
      reinterpret_cast<const char*>(tensor.elements.data()),
      tensor.elements.size_bytes());
  std::string header = TensorHeader(tensor).SerializeAsString();
  header += FieldPrefix(v1::Tensor::kDataFieldNumber, data.size());
  pieces.push_back(
      OwnedPiece(FieldPrefix(number, header.size() + data.size()) + header));
  if (!data.empty()) pieces.push_back({.bytes = data, .owner = owner});
}

v1::Tensor WithValues(const ResponseTensor& tensor) {
  v1::Tensor message = TensorHeader(tensor);
  message.mutable_values()->mutable_values()->Add(tensor.elements.begin(),
                                                  tensor.elements.end());
  return message;
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

ResponsePieces EncodeAnswer(const AttentionAnswer& answer, PayloadKind kind,
                            std::shared_ptr<const void> owner) {
  v1::AttentionResponse rest;
  *rest.mutable_stats() = EncodeStats(answer.stats);
  if (kind == PayloadKind::kValues) {
    *rest.mutable_output() = WithValues(answer.output);
    if (answer.lse != nullptr) *rest.mutable_lse() = WithValues(*answer.lse);
    // The numbers are copied; the owner also stands for the memory budget that
    // the answer holds until it is sent.
    using Text = std::pair<std::string, std::shared_ptr<const void>>;
    const auto text =
        std::make_shared<Text>(rest.SerializeAsString(), std::move(owner));
    return ResponsePieces{{.bytes = text->first, .owner = text}};
  }
  ResponsePieces pieces;
  AppendTensor(v1::AttentionResponse::kOutputFieldNumber, answer.output, owner,
               pieces);
  if (answer.lse != nullptr) {
    AppendTensor(v1::AttentionResponse::kLseFieldNumber, *answer.lse, owner,
                 pieces);
  }
  pieces.push_back(OwnedPiece(rest.SerializeAsString()));
  return pieces;
}

}  // namespace attnd::server
