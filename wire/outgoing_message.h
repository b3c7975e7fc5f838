// Writes messages of protobuf's wire format, for both ends. Small parts are
// encoded into text. Large bytes, such as a tensor's data, stay where they are
// and are never copied by protobuf.
#ifndef ATTND_WIRE_OUTGOING_MESSAGE_H_
#define ATTND_WIRE_OUTGOING_MESSAGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "google/protobuf/message_lite.h"

namespace attnd {

// Bytes shorter than this become text: a copy of them costs less than a piece
// of their own.
inline constexpr size_t kSmallestPieceBytes = 4096;

// A message in pieces. Add its fields in the order in which they should be
// written. Copyable and movable; copies share what the owners keep.
class OutgoingMessage {
 public:
  // A run of the message's bytes: either `text` or `data`.
  struct Piece {
    std::string text = {};
    absl::string_view data = {};
    // Kept until the piece is sent. If `data` has no owner, the caller keeps
    // its bytes alive.
    std::shared_ptr<const void> owner = {};

    absl::string_view bytes() const { return data.empty() ? text : data; }
  };

  // Every piece keeps `owner`, including pieces of text.
  explicit OutgoingMessage(std::shared_ptr<const void> owner = nullptr)
      : owner_(std::move(owner)) {}

  // Returns the whole of `message` as text.
  static OutgoingMessage Of(const google::protobuf::MessageLite& message);

  // Allocates memory for this much text, so that it does not grow repeatedly.
  void Reserve(size_t text_bytes);

  // Adds the field `number`, which is `message`.
  void AddField(int number, const google::protobuf::MessageLite& message);
  void AddField(int number, OutgoingMessage message);
  // Adds the field `number`, a message that consists of the fields of `header`
  // and of `data` as its field `data_number`. `data_owner` keeps the bytes of
  // `data` alive. If it is null, the message's owner or else the caller does.
  void AddField(int number, const google::protobuf::MessageLite& header,
                int data_number, absl::string_view data,
                std::shared_ptr<const void> data_owner = nullptr);

  // Copies all data without an owner, so that the caller may free it.
  void CopyIfBorrowed();

  uint64_t size_bytes() const { return size_bytes_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  std::vector<Piece> TakePieces() && { return std::move(pieces_); }

 private:
  std::string& Text();  // to append to
  void AppendText(absl::string_view text);
  // Appends the tag and the length of a field that is `length` bytes long.
  void AppendPrefix(int number, uint64_t length);
  // Appends `message`, for which ByteSizeLong() has just returned `size_bytes`.
  // Protobuf's AppendToString would count again.
  void AppendCounted(const google::protobuf::MessageLite& message,
                     size_t size_bytes);

  std::shared_ptr<const void> owner_;
  std::vector<Piece> pieces_;
  uint64_t size_bytes_ = 0;
};

// A piece whose bytes gRPC refers to. It frees itself when gRPC has dropped
// every reference, in whatever thread that happens. Its functions must be
// compiled outside of files that include gRPC, see base/tsan_ordering.h.
class HeldPiece {
 public:
  // Returns a piece that lives until Drop was called `references` times.
  static HeldPiece* Hold(OutgoingMessage::Piece piece, size_t references = 1);
  // Drops one reference to `held`, which Hold returned.
  static void Drop(void* held);

  absl::string_view bytes() const { return piece_.bytes(); }

 private:
  HeldPiece(OutgoingMessage::Piece piece, size_t references);

  const OutgoingMessage::Piece piece_;
  std::atomic<size_t> references_;
};

}  // namespace attnd

#endif  // ATTND_WIRE_OUTGOING_MESSAGE_H_
