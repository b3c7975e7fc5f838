#include "client/attention_exchange.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/answer_reader.h"
#include "client/error_details.h"
#include "client/request_encoder.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/wire_format_lite.h"

namespace attnd::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;
using google::protobuf::io::ZeroCopyInputStream;
using Request = v1::AttentionStreamRequest;

// What the contract allows a chunk, and what it has beside its data.
constexpr int64_t kMaxChunkBytes = int64_t{1} << 20;
constexpr int64_t kChunkEnvelopeBytes = 64;

OutgoingMessage ChunkMessage(v1::TensorRole role, size_t offset,
                             const ConstElements& data) {
  v1::TensorChunk place;
  place.set_role(role);
  place.set_offset_bytes(static_cast<int64_t>(offset));
  OutgoingMessage chunk = OutgoingMessage::Of(place);
  chunk.AddField(v1::TensorChunk::kDataFieldNumber, data);
  OutgoingMessage message;
  message.AddField(Request::kChunkFieldNumber, std::move(chunk));
  return message;
}

}  // namespace

AttentionExchange::AttentionExchange(const AttentionInputs& inputs,
                                     const AttentionOptions& options,
                                     const v1::AttentionOptions& asked,
                                     const AttentionOutputs& outputs,
                                     int64_t max_message_bytes)
    : max_chunk_bytes_(static_cast<size_t>(
          std::clamp(max_message_bytes - kChunkEnvelopeBytes, int64_t{1},
                     kMaxChunkBytes))) {
  Request header;
  *header.mutable_header() = DescribeRequest(inputs, options, asked);
  header_ = OutgoingMessage::Of(header);
  sources_ = {{v1::TENSOR_ROLE_QUERY, inputs.query.data},
              {v1::TENSOR_ROLE_KEY, inputs.key.data},
              {v1::TENSOR_ROLE_VALUE, inputs.value.data}};
  if (options.bias) {
    sources_.push_back({v1::TENSOR_ROLE_BIAS, options.bias->data});
  }
  if (options.mask) {
    sources_.push_back({v1::TENSOR_ROLE_MASK, options.mask->data});
  }
  targets_ = {{.name = "output",
               .role = v1::TENSOR_ROLE_OUTPUT,
               .elements = outputs.output}};
  if (outputs.lse) {
    targets_.push_back(
        {.name = "lse", .role = v1::TENSOR_ROLE_LSE, .elements = *outputs.lse});
  }
}

std::optional<OutgoingMessage> AttentionExchange::Next() {
  if (header_) return std::exchange(header_, std::nullopt);
  for (; next_source_ < sources_.size(); ++next_source_, next_offset_ = 0) {
    const auto& [role, data] = sources_[next_source_];
    const auto rest = data.bytes().subspan(next_offset_);
    if (rest.empty()) continue;
    const auto piece = rest.first(std::min(rest.size(), max_chunk_bytes_));
    const size_t offset =
        std::exchange(next_offset_, next_offset_ + piece.size());
    return ChunkMessage(
        role, offset, ConstElements(data.type(), piece).OwnedBy(data.owner()));
  }
  return std::nullopt;
}

bool AttentionExchange::OnResponse(ZeroCopyInputStream* message) {
  refusal_ = Take(message);
  return refusal_.ok();
}

absl::Status AttentionExchange::Take(ZeroCopyInputStream* message) {
  constexpr uint32_t kChunkTag =
      WireFormatLite::MakeTag(v1::AttentionStreamResponse::kChunkFieldNumber,
                              WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
  std::string rest;
  {
    StringOutputStream text(&rest);
    CodedOutputStream out(&text);
    CodedInputStream in(message);
    while (const uint32_t tag = in.ReadTag()) {
      if (tag != kChunkTag) {
        if (!WireFormatLite::SkipField(&in, tag, &out)) return BadResponse();
        continue;
      }
      int length = 0;
      if (!in.ReadVarintSizeAsInt(&length)) return BadResponse();
      const auto limit = in.PushLimit(length);
      if (absl::Status status = TakeChunk(in); !status.ok()) return status;
      in.PopLimit(limit);
    }
    if (!in.ConsumedEntireMessage()) return BadResponse();
  }
  v1::AttentionStreamResponse response;
  if (!response.ParseFromString(rest)) return BadResponse();
  if (response.has_header()) return TakeHeader(response.header());
  if (response.has_stats()) stats_ = DecodeStats(response.stats());
  return absl::OkStatus();
}

absl::Status AttentionExchange::TakeHeader(
    const v1::AttentionResponse& header) {
  for (Target& target : targets_) {
    target.header =
        target.role == v1::TENSOR_ROLE_LSE ? header.lse() : header.output();
    const std::vector<int64_t> shape(target.header.shape().begin(),
                                     target.header.shape().end());
    const int64_t size_bytes =
        ElementCount(shape).value_or(0) * SizeOf(target.elements.type());
    absl::Status status =
        CheckAnswer(target.name, target.header,
                    static_cast<uint64_t>(size_bytes), target.elements);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// By hand, for protobuf would copy the data to a string first. Fields come in
// the order of their numbers, as everything that writes messages writes them.
absl::Status AttentionExchange::TakeChunk(CodedInputStream& in) {
  constexpr uint32_t kDataTag =
      WireFormatLite::MakeTag(v1::TensorChunk::kDataFieldNumber,
                              WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
  uint64_t role = 0;
  uint64_t offset = 0;
  while (const uint32_t tag = in.ReadTag()) {
    if (tag == WireFormatLite::MakeTag(v1::TensorChunk::kRoleFieldNumber,
                                       WireFormatLite::WIRETYPE_VARINT)) {
      if (!in.ReadVarint64(&role)) return BadResponse();
      continue;
    }
    if (tag == WireFormatLite::MakeTag(v1::TensorChunk::kOffsetBytesFieldNumber,
                                       WireFormatLite::WIRETYPE_VARINT)) {
      if (!in.ReadVarint64(&offset)) return BadResponse();
      continue;
    }
    if (tag != kDataTag) {
      if (!WireFormatLite::SkipField(&in, tag)) return BadResponse();
      continue;
    }
    int length = 0;
    if (!in.ReadVarintSizeAsInt(&length)) return BadResponse();
    const auto target = std::find_if(
        targets_.begin(), targets_.end(), [&](const Target& candidate) {
          return static_cast<uint64_t>(candidate.role) == role;
        });
    if (target == targets_.end()) {
      return BadResponse(
          absl::StrCat("the server answered a chunk of role ", role));
    }
    const auto room = target->elements.bytes().subspan(target->received_bytes);
    const auto size = static_cast<size_t>(length);
    if (offset != target->received_bytes || size > room.size()) {
      return BadResponse(absl::StrCat(target->name, ": the server answered ",
                                      size, " bytes at ", offset, " after ",
                                      target->received_bytes, " of ",
                                      target->elements.bytes().size()));
    }
    if (!in.ReadRaw(room.data(), length)) return BadResponse();
    target->received_bytes += size;
  }
  return in.ConsumedEntireMessage() ? absl::OkStatus() : BadResponse();
}

absl::StatusOr<AttentionReply> AttentionExchange::Reply(
    const absl::Status& status) {
  if (!refusal_.ok()) return refusal_;
  if (!status.ok()) return status;
  AttentionReply reply;
  for (const Target& target : targets_) {
    if (target.received_bytes != target.elements.bytes().size()) {
      return BadResponse(absl::StrCat(target.name, ": the server answered ",
                                      target.received_bytes, " bytes of ",
                                      target.elements.bytes().size()));
    }
    auto& shape = target.role == v1::TENSOR_ROLE_LSE ? reply.lse_shape
                                                     : reply.output_shape;
    shape.assign(target.header.shape().begin(), target.header.shape().end());
  }
  if (!stats_) {
    return BadResponse("the server ended a stream without its stats");
  }
  reply.stats = *std::move(stats_);
  return reply;
}

}  // namespace attnd::client
