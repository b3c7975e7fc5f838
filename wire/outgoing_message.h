// Writes messages in protobuf's wire format, in the client and in the server.
// Small parts of a message are encoded to strings. Large parts, such as the
// data of a tensor, are only referred to, so that they are not copied.
#ifndef ATTND_WIRE_OUTGOING_MESSAGE_H_
#define ATTND_WIRE_OUTGOING_MESSAGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "google/protobuf/message_lite.h"

namespace attnd {

// Data of fewer bytes than this is copied into the text of a piece, because
// that costs less than a piece of its own.
inline constexpr size_t kSmallestPieceBytes = 4096;

// A message that consists of pieces. Add its fields in the order in which they
// should be written. Copyable and movable; a copy refers to the same data and
// shares its owners. Not thread-safe.
class OutgoingMessage {
 public:
  // Consecutive bytes of the message, which are in either `text` or `data`. The
  // other one is empty.
  struct Piece {
    std::string text = {};
    absl::string_view data = {};
    // Keeps the bytes of `data` alive until the piece is sent. If it is null,
    // whoever made the message must keep them alive.
    std::shared_ptr<const void> owner = {};

    absl::string_view bytes() const { return data.empty() ? text : data; }
  };

  // Makes an empty message. Every piece that is added to it keeps `owner`
  // alive, including pieces of text.
  explicit OutgoingMessage(std::shared_ptr<const void> owner = nullptr)
      : owner_(std::move(owner)) {}

  // Returns `message`, encoded to text.
  static OutgoingMessage Of(const google::protobuf::MessageLite& message);

  // Allocates memory for `text_bytes` of text, so that the text does not have
  // to grow repeatedly.
  void Reserve(size_t text_bytes);

  // Adds `message` as the field `number`.
  void AddField(int number, const google::protobuf::MessageLite& message);
  void AddField(int number, OutgoingMessage message);
  // Adds a nested message as the field `number`. It consists of the fields of
  // `header`, and of `data` as its field `data_number`. `data_owner` keeps the
  // bytes of `data` alive. If it is null, the owner of this message does so. If
  // that is null too, the caller must do so.
  void AddField(int number, const google::protobuf::MessageLite& header,
                int data_number, std::span<const std::byte> data,
                std::shared_ptr<const void> data_owner = nullptr);

  // Copies all data that has no owner, so that the caller can free it.
  void CopyIfBorrowed();

  uint64_t size_bytes() const { return size_bytes_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  std::vector<Piece> TakePieces() && { return std::move(pieces_); }

 private:
  // Returns the text of the last piece, for appending. Adds a piece if the last
  // one has no text.
  std::string& Text();
  void AppendText(absl::string_view text);
  // Appends the tag and the length of a field that is `length` bytes long.
  void AppendPrefix(int number, uint64_t length);
  // Appends `message`. Call `message`.ByteSizeLong() right before this, and
  // pass its result as `size_bytes`. Protobuf's AppendToString would compute
  // the size a second time.
  void AppendCounted(const google::protobuf::MessageLite& message,
                     size_t size_bytes);

  std::shared_ptr<const void> owner_;
  std::vector<Piece> pieces_;
  uint64_t size_bytes_ = 0;
};

// Keeps a piece alive while gRPC refers to its bytes. Deletes itself when gRPC
// drops the last reference, in the thread in which gRPC does so. Thread-safe.
//
// Its functions must not be inline: base/tsan_ordering.h explains why files
// that include gRPC must not contain them.
class HeldPiece {
 public:
  // Returns a new HeldPiece. It exists until Drop has been called `references`
  // times.
  static HeldPiece* Hold(OutgoingMessage::Piece piece, size_t references = 1);
  // Drops one reference. `held` must be what Hold returned.
  static void Drop(void* held);

  absl::string_view bytes() const { return piece_.bytes(); }

 private:
  HeldPiece(OutgoingMessage::Piece piece, size_t references);

  const OutgoingMessage::Piece piece_;
  std::atomic<size_t> references_;
};

}  // namespace attnd

#endif  // ATTND_WIRE_OUTGOING_MESSAGE_H_
