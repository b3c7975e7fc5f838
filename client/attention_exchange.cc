#include "client/attention_exchange.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "client/answer_reader.h"
#include "client/error_details.h"
#include "client/request_encoder.h"
#include "wire/message_sizes.h"

namespace attnd::client {
namespace {

using Request = v1::AttentionStreamRequest;

// The size limit of all that a message with a chunk holds besides the chunk's
// data.
constexpr int64_t kChunkEnvelopeBytes = 64;

// Returns whether the two spans share memory.
bool Overlap(std::span<const std::byte> a, std::span<const std::byte> b) {
  const std::less<> before;  // orders pointers into any memory
  return !a.empty() && !b.empty() && before(a.data(), b.data() + b.size()) &&
         before(b.data(), a.data() + a.size());
}

OutgoingMessage ChunkMessage(v1::TensorRole role, size_t offset,
                             const ConstElements& data) {
  v1::TensorChunk chunk;
  chunk.set_role(role);
  chunk.set_offset_bytes(static_cast<int64_t>(offset));
  OutgoingMessage message;
  message.AddField(Request::kChunkFieldNumber, chunk,
                   v1::TensorChunk::kDataFieldNumber, data.bytes(),
                   data.owner());
  return message;
}

}  // namespace

AttentionExchange::AttentionExchange(
    const AttentionInputs& inputs, const AttentionOptions& options,
    const v1::AttentionOptions& requested_outputs,
    const AttentionOutputs& outputs, int64_t max_message_bytes)
    : max_chunk_bytes_(static_cast<size_t>(
          std::clamp(max_message_bytes - kChunkEnvelopeBytes, int64_t{1},
                     kMaxChunkBytes))) {
  Request header;
  *header.mutable_header() =
      DescribeRequest(inputs, options, requested_outputs);
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
               .elements = outputs.output,
               .shape = OutputShape(inputs.query.shape, inputs.value.shape)}};
  if (outputs.lse) {
    targets_.push_back({.name = "lse",
                        .role = v1::TENSOR_ROLE_LSE,
                        .elements = *outputs.lse,
                        .shape = LseShape(inputs.query.shape, options.layout)});
  }
}

std::optional<OutgoingMessage> AttentionExchange::Next() {
  if (!std::exchange(header_sent_, true)) return header_;
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

bool AttentionExchange::OnResponse(const ReceivedMessage& message) {
  answer_error_ = ReadMessage(message);
  return answer_error_.ok();
}

bool AttentionExchange::Restart() {
  if (!answer_error_.ok() || HasOverwrittenInputs()) return false;
  header_sent_ = false;
  next_source_ = 0;
  next_offset_ = 0;
  for (Target& target : targets_) target.received_bytes = 0;
  has_header_ = false;
  stats_.reset();
  return true;
}

bool AttentionExchange::HasOverwrittenInputs() const {
  for (const Target& target : targets_) {
    const auto written = target.elements.bytes().first(target.received_bytes);
    for (const Source& source : sources_) {
      if (Overlap(written, source.data.bytes())) return true;
    }
  }
  return false;
}

absl::Status AttentionExchange::ReadMessage(const ReceivedMessage& received) {
  ATTND_ASSIGN_OR_RETURN(const StreamedAnswer answer, ReadStreamed(received));
  const v1::AttentionStreamResponse& message = answer.message;
  if (message.has_header()) return ReadHeader(message.header());
  if (message.has_chunk()) {
    return ReadChunk(message.chunk(), answer.data, received);
  }
  if (message.has_stats()) stats_ = DecodeStats(message.stats());
  return absl::OkStatus();
}

absl::Status AttentionExchange::ReadHeader(
    const v1::AttentionResponse& header) {
  for (Target& target : targets_) {
    target.header =
        target.role == v1::TENSOR_ROLE_LSE ? header.lse() : header.output();
    ATTND_RETURN_IF_ERROR(
        CheckAnswer(target.name, target.header, target.elements, target.shape));
  }
  has_header_ = true;
  return absl::OkStatus();
}

absl::Status AttentionExchange::ReadChunk(const v1::TensorChunk& chunk,
                                          const PayloadRange& data,
                                          const ReceivedMessage& message) {
  if (!has_header_) {
    return BadResponse(
        "the server sent a chunk before the header of its answer");
  }
  const auto target =
      std::find_if(targets_.begin(), targets_.end(),
                   [&](const Target& t) { return t.role == chunk.role(); });
  if (target == targets_.end()) {
    return BadResponse(absl::StrCat("the server sent a chunk of role ",
                                    static_cast<int>(chunk.role()),
                                    ", which the client did not request"));
  }
  const auto rest = target->elements.bytes().subspan(target->received_bytes);
  const auto size_bytes = static_cast<size_t>(data.size_bytes);
  if (chunk.offset_bytes() != static_cast<int64_t>(target->received_bytes) ||
      size_bytes > rest.size()) {
    return BadResponse(absl::StrCat(
        target->name, ": expected a chunk at offset ", target->received_bytes,
        " with at most ", rest.size(), " bytes, got one at offset ",
        chunk.offset_bytes(), " with ", size_bytes, " bytes from the server"));
  }
  target->received_bytes += size_bytes;
  message.CopyTo(data, rest.data());
  return absl::OkStatus();
}

absl::StatusOr<AttentionReply> AttentionExchange::Reply(
    const absl::Status& status) {
  ATTND_RETURN_IF_ERROR(answer_error_);
  ATTND_RETURN_IF_ERROR(status);
  if (!has_header_) {
    return BadResponse("the server ended the stream without sending a header");
  }
  AttentionReply reply;
  for (const Target& target : targets_) {
    if (target.received_bytes != target.elements.bytes().size()) {
      return BadResponse(absl::StrCat(target.name, ": expected ",
                                      target.elements.bytes().size(),
                                      " bytes, got ", target.received_bytes,
                                      " before the server ended the stream"));
    }
    (target.role == v1::TENSOR_ROLE_LSE ? reply.lse_shape
                                        : reply.output_shape) = target.shape;
  }
  if (!stats_) {
    return BadResponse("the server ended the stream without sending stats");
  }
  reply.stats = *std::move(stats_);
  return reply;
}

}  // namespace attnd::client
