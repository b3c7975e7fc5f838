#include "wire/received_message.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace attnd {

ReceivedMessage::ReceivedMessage(std::vector<Slice> slices,
                                 std::shared_ptr<const void> owner)
    : slices_(std::move(slices)), owner_(std::move(owner)) {
  size_t end = 0;
  for (Slice& slice : slices_) slice.end = end += slice.bytes.size();
}

void ReceivedMessage::CopyTo(const PayloadRange& range, std::byte* to) const {
  auto offset = static_cast<size_t>(range.offset);
  auto left = static_cast<size_t>(range.size_bytes);
  auto slice = std::upper_bound(
      slices_.begin(), slices_.end(), offset,
      [](size_t at, const Slice& candidate) { return at < candidate.end; });
  for (; left > 0; ++slice) {
    const size_t rest = slice->end - offset;
    // An empty slice may have a null pointer, which memcpy must not get.
    if (rest == 0) continue;
    const size_t step = std::min(left, rest);
    std::memcpy(to, slice->bytes.data() + (slice->bytes.size() - rest), step);
    to += step;
    left -= step;
    offset += step;
  }
}

bool ReceivedStream::Next(const void** data, int* size) {
  while (next_ < slices_.size() && slices_[next_].bytes.size() == used_) {
    ++next_;
    used_ = 0;
  }
  if (next_ == slices_.size()) return false;
  const absl::string_view rest = slices_[next_].bytes.substr(used_);
  *data = rest.data();
  *size = static_cast<int>(rest.size());
  used_ += rest.size();
  position_ += *size;
  return true;
}

// Protobuf never backs up over more bytes than the last Next returned.
void ReceivedStream::BackUp(int count) {
  used_ -= static_cast<size_t>(count);
  position_ -= count;
}

bool ReceivedStream::Skip(int count) {
  auto left = static_cast<size_t>(count);
  while (left > 0) {
    if (next_ == slices_.size()) return false;
    const size_t step = std::min(left, slices_[next_].bytes.size() - used_);
    used_ += step;
    left -= step;
    position_ += static_cast<int64_t>(step);
    // Moves to the next slice only if there is more to skip, because BackUp may
    // follow.
    if (left > 0) {
      ++next_;
      used_ = 0;
    }
  }
  return true;
}

}  // namespace attnd
