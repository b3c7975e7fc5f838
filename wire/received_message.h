// Holds a message that has arrived, in the buffers of gRPC that the network
// filled.
#ifndef ATTND_WIRE_RECEIVED_MESSAGE_H_
#define ATTND_WIRE_RECEIVED_MESSAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/string_view.h"
#include "google/protobuf/io/zero_copy_stream.h"

namespace attnd {

// The place of some bytes in a message, such as the data of a tensor.
struct PayloadRange {
  int64_t offset = 0;
  int64_t size_bytes = 0;
};

// The bytes of one message, which may lie in several buffers. Movable. Several
// threads can read one message at the same time.
class ReceivedMessage {
 public:
  // Consecutive bytes of the message that lie in one buffer.
  struct Slice {
    absl::string_view bytes;
    // The offset in the message at which the slice ends. The constructor of
    // ReceivedMessage sets it.
    size_t end = 0;
  };

  ReceivedMessage() = default;
  // Makes a message that consists of `slices`. `owner` keeps their bytes alive
  // for as long as the message exists.
  ReceivedMessage(std::vector<Slice> slices, std::shared_ptr<const void> owner);

  int64_t size_bytes() const {
    return slices_.empty() ? 0 : static_cast<int64_t>(slices_.back().end);
  }
  const std::vector<Slice>& slices() const { return slices_; }

  // Copies the bytes of `range` to `to`. `range` must lie within the message.
  void CopyTo(const PayloadRange& range, std::byte* to) const;

 private:
  std::vector<Slice> slices_;
  std::shared_ptr<const void> owner_;
};

// Lets protobuf read a message. The message must outlive the stream.
class ReceivedStream final : public google::protobuf::io::ZeroCopyInputStream {
 public:
  explicit ReceivedStream(const ReceivedMessage& message)
      : slices_(message.slices()) {}

  bool Next(const void** data, int* size) override;
  void BackUp(int count) override;
  bool Skip(int count) override;
  int64_t ByteCount() const override { return position_; }

 private:
  const std::vector<ReceivedMessage::Slice>& slices_;
  size_t next_ = 0;
  size_t used_ = 0;  // bytes of slices_[next_] that were returned or skipped
  int64_t position_ = 0;
};

}  // namespace attnd

#endif  // ATTND_WIRE_RECEIVED_MESSAGE_H_
