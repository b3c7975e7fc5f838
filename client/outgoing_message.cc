#include "client/outgoing_message.h"

#include <atomic>
#include <utility>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/message_lite.h"
#include "google/protobuf/wire_format_lite.h"

namespace attnd::client {
namespace {

using google::protobuf::MessageLite;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;

// Below this a copy costs less than a piece of its own.
constexpr size_t kSmallestPieceBytes = 4096;

// What a handle of Hold points to.
struct Held {
  std::shared_ptr<const void> owner;
  std::atomic<bool> complete = false;
};

}  // namespace

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
  {
    StringOutputStream stream(&prefix);
    CodedOutputStream out(&stream);
    out.WriteTag(WireFormatLite::MakeTag(
        number, WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
    out.WriteVarint64(length);
  }
  AppendText(prefix);
}

void* Hold(std::shared_ptr<const void> owner) {
  auto* held = new Held{std::move(owner)};
  held->complete.store(true, std::memory_order_release);
  return held;
}

void Drop(void* held) {
  auto* const typed = static_cast<Held*>(held);
  (void)typed->complete.load(std::memory_order_acquire);
  delete typed;
}

}  // namespace attnd::client
