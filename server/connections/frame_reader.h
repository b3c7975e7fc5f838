// Finds the frames in the bytes that one end of an HTTP/2 connection sends (RFC
// 9113). It reads only the headers of frames, and never copies or keeps a
// payload, so it takes a few nanoseconds for each frame.
#ifndef ATTND_SERVER_CONNECTIONS_FRAME_READER_H_
#define ATTND_SERVER_CONNECTIONS_FRAME_READER_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace attnd::server {

// The types of frames that attnd looks at. A frame can have another type, too.
enum class FrameType : uint8_t {
  kData = 0,
  kHeaders = 1,
  kRstStream = 3,
  kSettings = 4,
  kPing = 6,
  kGoaway = 7,
  kContinuation = 9,
};

// The header that each frame begins with.
struct FrameHeader {
  static constexpr size_t kBytes = 9;  // its size on the wire
  // The flags that attnd looks at. The comments name the types of frames in
  // which each flag is used.
  static constexpr uint8_t kEndStream = 0x1;   // kData, kHeaders
  static constexpr uint8_t kAck = 0x1;         // kSettings, kPing
  static constexpr uint8_t kEndHeaders = 0x4;  // kHeaders, kContinuation

  bool has(uint8_t flag) const { return (flags & flag) != 0; }

  uint32_t payload_bytes = 0;
  FrameType type{};
  uint8_t flags = 0;
  uint32_t stream = 0;  // 0 stands for the connection itself
};

// Reads the bytes of one direction of a connection, in order and in pieces of
// any size. Not thread-safe.
class FrameReader {
 public:
  // A client sends the first 24 bytes of its connection before any frame.
  static constexpr size_t kClientPrefaceBytes = 24;

  // Ignores the first `preface_bytes` bytes. The first frame begins after them.
  explicit FrameReader(size_t preface_bytes) : skip_bytes_(preface_bytes) {}

  // Reads the next `size` bytes. Calls `begin(header)` when the header of a
  // frame is complete, `payload(header, bytes)` for each piece of its payload,
  // and `end(header)` when the payload is complete. Stops as soon as one of
  // them returns false, and returns false then. Do not use the reader after
  // that.
  template <typename Begin, typename Payload, typename End>
  bool Read(const char* data, size_t size, Begin&& begin, Payload&& payload,
            End&& end) {
    while (size > 0) {
      if (skip_bytes_ > 0) {
        const size_t step = std::min(size, skip_bytes_);
        skip_bytes_ -= step;
        data += step;
        size -= step;
        continue;
      }
      if (left_bytes_ > 0) {
        const size_t step = std::min(size, left_bytes_);
        left_bytes_ -= step;
        data += step;
        size -= step;
        if (!payload(frame_, step)) return false;
        if (left_bytes_ == 0 && !end(frame_)) return false;
        continue;
      }
      const size_t step = std::min(size, FrameHeader::kBytes - header_bytes_);
      std::memcpy(header_.data() + header_bytes_, data, step);
      header_bytes_ += step;
      data += step;
      size -= step;
      if (header_bytes_ < FrameHeader::kBytes) continue;
      header_bytes_ = 0;
      frame_ = Decode();
      left_bytes_ = frame_.payload_bytes;
      if (!begin(frame_)) return false;
      if (left_bytes_ == 0 && !end(frame_)) return false;
    }
    return true;
  }

 private:
  FrameHeader Decode() const {
    const auto byte = [this](size_t i) { return uint32_t{header_[i]}; };
    return {.payload_bytes = byte(0) << 16 | byte(1) << 8 | byte(2),
            .type = static_cast<FrameType>(header_[3]),
            .flags = header_[4],
            .stream = (byte(5) << 24 | byte(6) << 16 | byte(7) << 8 | byte(8)) &
                      0x7fffffff};
  }

  size_t skip_bytes_;
  std::array<uint8_t, FrameHeader::kBytes> header_{};
  size_t header_bytes_ = 0;  // how much of header_ has been read
  FrameHeader frame_;
  size_t left_bytes_ = 0;  // how much of frame_'s payload has yet to come
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_FRAME_READER_H_
