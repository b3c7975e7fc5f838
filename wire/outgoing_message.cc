#include "wire/outgoing_message.h"

#include <array>
#include <utility>

#include "base/tsan_ordering.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"

namespace attnd {
namespace {

using google::protobuf::MessageLite;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;

// Returns how many bytes the tag and the length of a length-delimited field
// take.
size_t PrefixBytes(int number, uint64_t length) {
  // TagSize needs a type, but every type that is not a group gives the same
  // result.
  return WireFormatLite::TagSize(number, WireFormatLite::TYPE_BYTES) +
         CodedOutputStream::VarintSize64(length);
}

}  // namespace

OutgoingMessage OutgoingMessage::Of(const MessageLite& message) {
  OutgoingMessage out;
  out.AppendCounted(message, message.ByteSizeLong());
  return out;
}

void OutgoingMessage::Reserve(size_t text_bytes) { Text().reserve(text_bytes); }

void OutgoingMessage::AddField(int number, const MessageLite& message) {
  const size_t message_bytes = message.ByteSizeLong();
  AppendPrefix(number, message_bytes);
  AppendCounted(message, message_bytes);
}

void OutgoingMessage::AddField(int number, OutgoingMessage message) {
  AppendPrefix(number, message.size_bytes_);
  for (Piece& piece : message.pieces_) {
    if (piece.data.empty()) {
      AppendText(piece.text);
    } else {
      size_bytes_ += piece.data.size();
      pieces_.push_back(std::move(piece));
    }
  }
}

void OutgoingMessage::AddField(int number, const MessageLite& header,
                               int data_number, std::span<const std::byte> data,
                               std::shared_ptr<const void> data_owner) {
  const size_t header_bytes = header.ByteSizeLong();
  AppendPrefix(number, header_bytes + PrefixBytes(data_number, data.size()) +
                           data.size());
  AppendCounted(header, header_bytes);
  AppendPrefix(data_number, data.size());
  const absl::string_view bytes(reinterpret_cast<const char*>(data.data()),
                                data.size());
  if (bytes.size() < kSmallestPieceBytes) return AppendText(bytes);
  size_bytes_ += bytes.size();
  pieces_.push_back(
      {.data = bytes, .owner = data_owner ? std::move(data_owner) : owner_});
}

void OutgoingMessage::CopyIfBorrowed() {
  for (Piece& piece : pieces_) {
    if (piece.data.empty() || piece.owner != nullptr) continue;
    const auto copy = std::make_shared<const std::string>(piece.data);
    piece.data = *copy;
    piece.owner = copy;
  }
}

std::string& OutgoingMessage::Text() {
  if (pieces_.empty() || !pieces_.back().data.empty()) {
    pieces_.push_back({.owner = owner_});
  }
  return pieces_.back().text;
}

void OutgoingMessage::AppendText(absl::string_view text) {
  Text().append(text.data(), text.size());
  size_bytes_ += text.size();
}

void OutgoingMessage::AppendPrefix(int number, uint64_t length) {
  constexpr size_t kMaxPrefixBytes = 15;
  std::array<uint8_t, kMaxPrefixBytes> prefix;
  uint8_t* end = CodedOutputStream::WriteTagToArray(
      WireFormatLite::MakeTag(number,
                              WireFormatLite::WIRETYPE_LENGTH_DELIMITED),
      prefix.data());
  end = CodedOutputStream::WriteVarint64ToArray(length, end);
  AppendText({reinterpret_cast<const char*>(prefix.data()),
              static_cast<size_t>(end - prefix.data())});
}

void OutgoingMessage::AppendCounted(const MessageLite& message,
                                    size_t size_bytes) {
  std::string& text = Text();
  const size_t before = text.size();
  text.resize(before + size_bytes);
  message.SerializeWithCachedSizesToArray(
      reinterpret_cast<uint8_t*>(text.data() + before));
  size_bytes_ += size_bytes;
}

HeldPiece::HeldPiece(OutgoingMessage::Piece piece, size_t references)
    : piece_(std::move(piece)), references_(references) {}

HeldPiece* HeldPiece::Hold(OutgoingMessage::Piece piece, size_t references) {
  auto* const held = new HeldPiece(std::move(piece), references);
  TsanRelease(held);
  return held;
}

void HeldPiece::Drop(void* held) {
  auto* const piece = static_cast<HeldPiece*>(held);
  TsanAcquire(held);
  if (piece->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    delete piece;
  }
}

}  // namespace attnd
