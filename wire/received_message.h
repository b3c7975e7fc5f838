// A message that has arrived, in the buffers of the network.
#ifndef ATTND_WIRE_RECEIVED_MESSAGE_H_
#define ATTND_WIRE_RECEIVED_MESSAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/string_view.h"
#include "google/protobuf/io/zero_copy_stream.h"

namespace attnd {

// A run of bytes in a message.
struct PayloadRange {
  int64_t offset = 0;
  int64_t size_bytes = 0;
};

// Movable. Threads may read one message at the same time.
class ReceivedMessage {
 public:
  ReceivedMessage() = default;
  // The message consists of `slices`. `owner` keeps their bytes alive for as
  // long as the message exists.
  ReceivedMessage(std::vector<absl::string_view> slices,
                  std::shared_ptr<const void> owner);

  int64_t size_bytes() const {
    return ends_.empty() ? 0 : static_cast<int64_t>(ends_.back());
  }
  const std::vector<absl::string_view>& slices() const { return slices_; }

  // Copies the bytes of `range`, which lies within the message, to `to`.
  void CopyTo(const PayloadRange& range, std::byte* to) const;

 private:
  std::vector<absl::string_view> slices_;
  std::shared_ptr<const void> owner_;
  std::vector<size_t> ends_;  // where each slice ends in the message
};

// Lets protobuf read a message, which must outlive the stream.
class ReceivedStream final : public google::protobuf::io::ZeroCopyInputStream {
 public:
  explicit ReceivedStream(const ReceivedMessage& message)
      : slices_(message.slices()) {}

  bool Next(const void** data, int* size) override;
  void BackUp(int count) override;
  bool Skip(int count) override;
  int64_t ByteCount() const override { return position_; }

 private:
  const std::vector<absl::string_view>& slices_;
  size_t next_ = 0;
  size_t used_ = 0;  // bytes of slices_[next_] that were returned or skipped
  int64_t position_ = 0;
};

}  // namespace attnd

#endif  // ATTND_WIRE_RECEIVED_MESSAGE_H_
