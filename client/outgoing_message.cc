#include "client/outgoing_message.h"

#include <utility>

#include "google/protobuf/message_lite.h"
#include "proto/message_pieces.h"

namespace attnd::client {

using google::protobuf::MessageLite;

OutgoingMessage OutgoingMessage::Of(const MessageLite& message) {
  OutgoingMessage out;
  out.Append(message);
  return out;
}

void OutgoingMessage::AddField(int number, const MessageLite& message) {
  AddField(number, Of(message));
}

void OutgoingMessage::AddField(int number, OutgoingMessage message) {
  AppendPrefix(number, message.size_bytes_);
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
  AppendPrefix(number, data.size());
  if (data.size() < kSmallestPieceBytes) {
    AppendText({reinterpret_cast<const char*>(data.data()), data.size()});
    return;
  }
  size_bytes_ += data.size();
  pieces_.push_back({.elements = bytes});
}

void OutgoingMessage::Append(const MessageLite& message) {
  AppendText(message.SerializeAsString());
}

void OutgoingMessage::AppendText(absl::string_view text) {
  if (text.empty()) return;
  if (pieces_.empty() || pieces_.back().text.empty()) pieces_.emplace_back();
  pieces_.back().text.append(text.data(), text.size());
  size_bytes_ += text.size();
}

void OutgoingMessage::AppendPrefix(int number, uint64_t length) {
  std::string prefix;
  attnd::AppendPrefix(number, length, prefix);
  AppendText(prefix);
}

}  // namespace attnd::client
