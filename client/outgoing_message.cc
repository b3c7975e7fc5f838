#include "client/outgoing_message.h"

#include <utility>

#include "google/protobuf/message_lite.h"
#include "proto/message_pieces.h"

namespace attnd::client {

using google::protobuf::MessageLite;

ConstElements Owned(const ConstElements& elements) {
  if (elements.owner() != nullptr || elements.bytes().empty()) return elements;
  const auto copy = std::make_shared<const std::vector<std::byte>>(
      elements.bytes().begin(), elements.bytes().end());
  return ConstElements(elements.type(), *copy).OwnedBy(copy);
}

OutgoingMessage OutgoingMessage::Of(const MessageLite& message) {
  OutgoingMessage out;
  out.Append(message, message.ByteSizeLong());
  return out;
}

void OutgoingMessage::Reserve(size_t text_bytes) { Text().reserve(text_bytes); }

void OutgoingMessage::BeginField(int number, uint64_t length) {
  std::string& text = Text();
  const size_t before = text.size();
  AppendPrefix(number, length, text);
  size_bytes_ += text.size() - before;
}

void OutgoingMessage::AddField(int number, const MessageLite& message) {
  std::string& text = Text();
  const size_t before = text.size();
  AppendField(number, message, text);
  size_bytes_ += text.size() - before;
}

void OutgoingMessage::AddField(int number, OutgoingMessage message) {
  BeginField(number, message.size_bytes_);
  for (Piece& piece : message.pieces_) {
    if (piece.text.empty()) {
      size_bytes_ += piece.elements.bytes().size();
      pieces_.push_back(std::move(piece));
    } else {
      AppendText(piece.text);
    }
  }
}

void OutgoingMessage::AddField(int number, const ConstElements& bytes) {
  const std::span<const std::byte> data = bytes.bytes();
  BeginField(number, data.size());
  if (data.size() < kSmallestPieceBytes) {
    AppendText({reinterpret_cast<const char*>(data.data()), data.size()});
    return;
  }
  size_bytes_ += data.size();
  pieces_.push_back({.elements = bytes});
}

void OutgoingMessage::Append(const MessageLite& message, size_t size_bytes) {
  AppendCounted(message, size_bytes, Text());
  size_bytes_ += size_bytes;
}

void OutgoingMessage::OwnElements() {
  for (Piece& piece : pieces_) piece.elements = Owned(piece.elements);
}

std::string& OutgoingMessage::Text() {
  if (pieces_.empty() || !pieces_.back().elements.bytes().empty()) {
    pieces_.emplace_back();
  }
  return pieces_.back().text;
}

void OutgoingMessage::AppendText(absl::string_view text) {
  Text().append(text.data(), text.size());
  size_bytes_ += text.size();
}

}  // namespace attnd::client
