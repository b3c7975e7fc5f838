#include "server/codec/payload_source.h"

#include <algorithm>
#include <cstring>

namespace attnd::server {
namespace {

// Copies larger than this are split. A worker copies a piece in about 20 us.
// That is long compared with the time for taking a task, and so short that all
// workers end at about the same time.
constexpr int64_t kPieceBytes = int64_t{256} << 10;

}  // namespace

void PayloadSource::Add(const PayloadRange& range, std::byte* to) {
  AddInPieces({.range = range, .to = to});
  needs_message_ |= range.size_bytes > 0;
}

void PayloadSource::AddMemory(const std::byte* from, int64_t size_bytes,
                              std::byte* to) {
  AddInPieces({.range = {0, size_bytes}, .to = to, .memory = from});
}

void PayloadSource::AddInPieces(const Part& part) {
  const auto& [range, to, memory] = part;
  for (int64_t done = 0; done < range.size_bytes; done += kPieceBytes) {
    pieces_.push_back(
        {{range.offset + done, std::min(kPieceBytes, range.size_bytes - done)},
         to + done,
         memory});
  }
  before_keys_ = pieces_.size();
}

void PayloadSource::AddKeysAndValues(const PayloadRange& keys,
                                     std::byte* keys_to,
                                     const PayloadRange& values,
                                     std::byte* values_to) {
  const size_t before_keys = before_keys_;
  Add(keys, keys_to);
  Add(values, values_to);
  before_keys_ = before_keys;
  keys_ = {.range = keys, .to = keys_to};
  values_ = {.range = values, .to = values_to};
}

void PayloadSource::Clear() { *this = PayloadSource(); }

void PayloadSource::Keep(ReceivedMessage received) {
  if (needs_message_) received_ = std::move(received);
}

int64_t PayloadSource::pieces() const {
  return static_cast<int64_t>(pieces_.size());
}

void PayloadSource::LoadPiece(int64_t piece) {
  const Part& part = pieces_[static_cast<size_t>(piece)];
  Load(part, 0, part.range.size_bytes);
}

int64_t PayloadSource::pieces_before_keys() const {
  return static_cast<int64_t>(before_keys_);
}

void PayloadSource::LoadKeys(int64_t offset_bytes, int64_t size_bytes) {
  Load(keys_, offset_bytes, size_bytes);
}

void PayloadSource::LoadValues(int64_t offset_bytes, int64_t size_bytes) {
  Load(values_, offset_bytes, size_bytes);
}

void PayloadSource::Load(const Part& part, int64_t offset_bytes,
                         int64_t size_bytes) const {
  std::byte* const to = part.to + offset_bytes;
  const int64_t begin = part.range.offset + offset_bytes;
  if (part.memory == nullptr) {
    received_.CopyTo({begin, size_bytes}, to);
  } else {
    std::memcpy(to, part.memory + begin, static_cast<size_t>(size_bytes));
  }
}

}  // namespace attnd::server
