#include "server/payload_source.h"

#include <algorithm>

namespace attnd::server {
namespace {

// Some 20 us: long against taking a task, and many enough that workers end
// together.
constexpr int64_t kPieceBytes = int64_t{256} << 10;

}  // namespace

void PayloadSource::Add(const PayloadRange& range, std::byte* to) {
  for (int64_t done = 0; done < range.size_bytes; done += kPieceBytes) {
    pieces_.push_back(
        {{range.offset + done, std::min(kPieceBytes, range.size_bytes - done)},
         to + done});
  }
  size_bytes_ += range.size_bytes;
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
  keys_ = {keys, keys_to};
  values_ = {values, values_to};
}

void PayloadSource::Clear() { *this = PayloadSource(); }

void PayloadSource::LoadAll(const ReceivedMessage& received) const {
  for (const Part& part : pieces_) received.CopyTo(part.range, part.to);
}

int64_t PayloadSource::pieces() const {
  return static_cast<int64_t>(pieces_.size());
}

void PayloadSource::LoadPiece(int64_t piece) {
  const Part& part = pieces_[static_cast<size_t>(piece)];
  received_.CopyTo(part.range, part.to);
}

int64_t PayloadSource::pieces_before_keys() const {
  return static_cast<int64_t>(before_keys_);
}

void PayloadSource::LoadKeys(int64_t offset_bytes, int64_t size_bytes) {
  LoadPart(keys_, offset_bytes, size_bytes);
}

void PayloadSource::LoadValues(int64_t offset_bytes, int64_t size_bytes) {
  LoadPart(values_, offset_bytes, size_bytes);
}

void PayloadSource::LoadPart(const Part& part, int64_t offset_bytes,
                             int64_t size_bytes) {
  received_.CopyTo({part.range.offset + offset_bytes, size_bytes},
                   part.to + offset_bytes);
}

}  // namespace attnd::server
