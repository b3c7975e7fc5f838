#include "server/codec/wire_message.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "server/status/status_convert.h"

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

absl::StatusOr<std::optional<SplitMessage>> SplitIfLight(
    const ReceivedMessage& received, const google::protobuf::Descriptor* type) {
  SliceStream stream(received.slices());
  return SplitIfLight(&stream, received.size_bytes(), type);
}

absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          std::optional<SplitMessage> light,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message,
                                          int64_t held_bytes) {
  const auto* type = message.GetDescriptor();
  const int64_t size_bytes = received.size_bytes();
  const auto reserve = [&](int64_t bound_bytes) {
    return reservation.GrowTo(held_bytes + size_bytes + bound_bytes);
  };
  absl::StatusOr<SplitMessage> split;
  if (light) {
    if (absl::Status status = reserve(light->bound_bytes); !status.ok()) {
      return status;
    }
    split = *std::move(light);
  } else {
    SliceStream measured(received.slices());
    const absl::StatusOr<SplitCost> cost =
        MeasureSplit(&measured, size_bytes, type);
    if (!cost.ok()) return cost.status();
    if (absl::Status status = reserve(cost->bound_bytes); !status.ok()) {
      return status;
    }
    SliceStream stream(received.slices());
    split = SplitPayloads(&stream, size_bytes, type, *cost);
    if (!split.ok()) return split.status();
  }
  if (!message.ParseFromString(split->header)) {
    return MalformedMessageError(type->full_name());
  }
  // What is left of the header is the parsed message.
  split->header = std::string();
  return split;
}

absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message) {
  absl::StatusOr<std::optional<SplitMessage>> light =
      SplitIfLight(received, message.GetDescriptor());
  if (!light.ok()) return light.status();
  return ParseMessage(received, *std::move(light), reservation, message);
}

ResponsePiece OwnedPiece(std::string text) {
  auto owner = std::make_shared<const std::string>(std::move(text));
  return {.bytes = *owner, .owner = owner};
}

ResponsePieces SerializePieces(const google::protobuf::Message& message) {
  return {OwnedPiece(message.SerializeAsString())};
}

}  // namespace attnd::server
