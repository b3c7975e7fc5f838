// Messages as bytes in pieces: what came in, and what goes out. The shape that
// gRPC's buffers take for everybody who must not know gRPC.
#ifndef ATTND_SERVER_CODEC_WIRE_MESSAGE_H_
#define ATTND_SERVER_CODEC_WIRE_MESSAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/io/zero_copy_stream.h"
#include "google/protobuf/message.h"
#include "server/codec/payload_splitter.h"
#include "server/memory/admission.h"

namespace attnd::server {

// A message in the buffers that it arrived in. Movable.
class ReceivedMessage {
 public:
  ReceivedMessage() = default;
  // `owner` keeps `slices` alive and goes with the message.
  ReceivedMessage(std::vector<absl::string_view> slices,
                  std::shared_ptr<const void> owner);

  int64_t size_bytes() const {
    return ends_.empty() ? 0 : static_cast<int64_t>(ends_.back());
  }
  const std::vector<absl::string_view>& slices() const { return slices_; }

  // Copies what `range` covers, which lies within the message, to `to`.
  void CopyTo(const PayloadRange& range, std::byte* to) const;

 private:
  std::vector<absl::string_view> slices_;
  std::shared_ptr<const void> owner_;
  std::vector<size_t> ends_;  // where each slice ends in the message
};

// Splits `received`, a message of type `type`, if it is light, and returns
// nothing otherwise. Takes microseconds, so any thread may call it.
absl::StatusOr<std::optional<SplitMessage>> SplitIfLight(
    const ReceivedMessage& received, const google::protobuf::Descriptor* type);

// Makes `message` of `received`, tensors' bytes apart, after growing
// `reservation` to `held_bytes`, which stand for something else, the received
// bytes and what parsing allocates beside them. `light` is what SplitIfLight
// returned. If it is empty, the time grows with the message.
absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          std::optional<SplitMessage> light,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message,
                                          int64_t held_bytes = 0);
// Calls SplitIfLight and then ParseMessage. For messages that cannot be long,
// and for threads that no other work waits for.
absl::StatusOr<SplitMessage> ParseMessage(const ReceivedMessage& received,
                                          Admission::Reservation& reservation,
                                          google::protobuf::Message& message);

// A part of a message that goes out; `owner` keeps the bytes alive.
struct ResponsePiece {
  absl::string_view bytes;
  std::shared_ptr<const void> owner;
};
using ResponsePieces = std::vector<ResponsePiece>;

// A piece that owns its text.
ResponsePiece OwnedPiece(std::string text);

// A whole message as one piece.
ResponsePieces SerializePieces(const google::protobuf::Message& message);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_WIRE_MESSAGE_H_
