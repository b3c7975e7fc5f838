#include "proto/message_pieces.h"

#include <array>
#include <atomic>
#include <utility>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/message_lite.h"
#include "google/protobuf/wire_format_lite.h"

namespace attnd {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;

// What a handle of Hold points to.
struct Held {
  std::shared_ptr<const void> owner;
  std::atomic<size_t> drops_left;
};

}  // namespace

size_t PrefixBytes(int number, uint64_t length) {
  // The wire type takes no byte of its own.
  return WireFormatLite::TagSize(number, WireFormatLite::TYPE_BYTES) +
         CodedOutputStream::VarintSize64(length);
}

void AppendPrefix(int number, uint64_t length, std::string& text) {
  constexpr size_t kMostBytes = 15;  // of a tag and a length
  std::array<uint8_t, kMostBytes> prefix;
  uint8_t* end = CodedOutputStream::WriteTagToArray(
      WireFormatLite::MakeTag(number,
                              WireFormatLite::WIRETYPE_LENGTH_DELIMITED),
      prefix.data());
  end = CodedOutputStream::WriteVarint64ToArray(length, end);
  text.append(prefix.data(), end);
}

void AppendCounted(const google::protobuf::MessageLite& message,
                   size_t size_bytes, std::string& text) {
  const size_t before = text.size();
  text.resize(before + size_bytes);
  message.SerializeWithCachedSizesToArray(
      reinterpret_cast<uint8_t*>(text.data() + before));
}

void AppendField(int number, const google::protobuf::MessageLite& message,
                 std::string& text) {
  const size_t size_bytes = message.ByteSizeLong();
  AppendPrefix(number, size_bytes, text);
  AppendCounted(message, size_bytes, text);
}

void* Hold(std::shared_ptr<const void> owner, size_t drops) {
  auto* held = new Held{std::move(owner), 0};
  held->drops_left.store(drops, std::memory_order_release);
  return held;
}

void Drop(void* held) {
  auto* const typed = static_cast<Held*>(held);
  // gRPC orders Hold before this. Thread sanitizer cannot see how, but it sees
  // this load, which takes what Hold has stored.
  (void)typed->drops_left.load(std::memory_order_acquire);
  if (typed->drops_left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    delete typed;
  }
}

}  // namespace attnd
