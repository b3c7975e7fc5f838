#include "wire/received_message.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace attnd {

ReceivedMessage::ReceivedMessage(std::vector<absl::string_view> slices,
                                 std::shared_ptr<const void> owner)
    : slices_(std::move(slices)), owner_(std::move(owner)) {
  ends_.reserve(slices_.size());
  size_t end = 0;
  for (const absl::string_view slice : slices_) {
    ends_.push_back(end += slice.size());
  }
}

void ReceivedMessage::CopyTo(const PayloadRange& range, std::byte* to) const {
  auto offset = static_cast<size_t>(range.offset);
  auto left = static_cast<size_t>(range.size_bytes);
  auto i = static_cast<size_t>(
      std::upper_bound(ends_.begin(), ends_.end(), offset) - ends_.begin());
  for (; left > 0; ++i) {
    const size_t step = std::min(left, ends_[i] - offset);
    std::memcpy(to,
                slices_[i].data() + (slices_[i].size() - (ends_[i] - offset)),
                step);
    to += step;
    left -= step;
    offset += step;
  }
}

bool ReceivedStream::Next(const void** data, int* size) {
  while (next_ < slices_.size() && slices_[next_].size() == used_) {
    ++next_;
    used_ = 0;
  }
  if (next_ == slices_.size()) return false;
  const absl::string_view rest = slices_[next_].substr(used_);
  *data = rest.data();
  *size = static_cast<int>(rest.size());
  used_ += rest.size();
  position_ += *size;
  return true;
}

// Protobuf backs up over less than the last Next returned.
void ReceivedStream::BackUp(int count) {
  used_ -= static_cast<size_t>(count);
  position_ -= count;
}

bool ReceivedStream::Skip(int count) {
  auto left = static_cast<size_t>(count);
  while (left > 0) {
    if (next_ == slices_.size()) return false;
    const size_t step = std::min(left, slices_[next_].size() - used_);
    used_ += step;
    left -= step;
    position_ += static_cast<int64_t>(step);
    // The slice is left only when there is more to skip: BackUp may follow.
    if (left > 0) {
      ++next_;
      used_ = 0;
    }
  }
  return true;
}

}  // namespace attnd
