#include "server/wire_message.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "server/status_convert.h"

namespace attnd::server {
namespace {

// Protobuf's view of the slices.
class SliceStream final : public google::protobuf::io::ZeroCopyInputStream {
 public:
  explicit SliceStream(const std::vector<absl::string_view>& slices)
      : slices_(slices) {}

  bool Next(const void** data, int* size) override {
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

  // Only ever called with less than what the last Next gave.
  void BackUp(int count) override {
    used_ -= static_cast<size_t>(count);
    position_ -= count;
  }

  bool Skip(int count) override {
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

  int64_t ByteCount() const override { return position_; }

 private:
  const std::vector<absl::string_view>& slices_;
  size_t next_ = 0;
  size_t used_ = 0;  // bytes of slices_[next_] that were given
  int64_t position_ = 0;
};

}  // namespace

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

absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message,
                                          int64_t held_bytes) {
  // Splitting makes at most 13 bytes of one that came. A small message is split
  // before that is counted: 53 KiB, and 160 while they grow, in as many threads
  // as gRPC calls from.
  constexpr int64_t kSmallBytes = 4096;
  const auto* type = message.GetDescriptor();
  const int64_t size_bytes = received.size_bytes();
  SplitCost cost;
  const auto reserve = [&] {
    return reservation.GrowTo(held_bytes + size_bytes + cost.bound_bytes);
  };
  if (size_bytes > kSmallBytes) {
    SliceStream measured(received.slices());
    const absl::StatusOr<SplitCost> found =
        MeasureSplit(&measured, size_bytes, type);
    if (!found.ok()) return found.status();
    cost = *found;
    if (absl::Status status = reserve(); !status.ok()) return status;
  }
  SliceStream stream(received.slices());
  absl::StatusOr<SplitMessage> split =
      SplitPayloads(&stream, size_bytes, type, &cost);
  if (!split.ok()) return split.status();
  if (absl::Status status = reserve(); !status.ok()) return status;
  if (!message.ParseFromString(split->header)) {
    return MalformedMessageError(type->full_name());
  }
  // What is left of the header is the parsed message.
  split->header = std::string();
  return split;
}

ResponsePiece OwnedPiece(std::string text) {
  auto owner = std::make_shared<const std::string>(std::move(text));
  return {.bytes = *owner, .owner = owner};
}

ResponsePieces SerializePieces(const google::protobuf::Message& message) {
  return {OwnedPiece(message.SerializeAsString())};
}

}  // namespace attnd::server
