// A message on its way out, as the pieces that it consists of: text that was
// encoded here, and tensors' bytes, which protobuf never sees. Knows the wire
// format of one field, neither gRPC nor what messages mean.
#ifndef ATTND_CLIENT_OUTGOING_MESSAGE_H_
#define ATTND_CLIENT_OUTGOING_MESSAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "client/types.h"

namespace google::protobuf {
class MessageLite;
}

namespace attnd::client {

// `elements`, or a copy that has an owner where they have none.
ConstElements Owned(const ConstElements& elements);

// Borrows the large elements that it was given until it is sent.
class OutgoingMessage {
 public:
  // Either a text, or elements that lie where the caller has them.
  struct Piece {
    std::string text = {};
    ConstElements elements = {};
  };

  // The whole of `message`.
  static OutgoingMessage Of(const google::protobuf::MessageLite& message);

  // Room for this much text, so that it need not grow.
  void Reserve(size_t text_bytes);
  // Tag and length of a field whose `length` bytes are added next.
  void BeginField(int number, uint64_t length);
  // A field of the message: `message`, as it lies on the wire but without its
  // tensors.
  void AddField(int number, const google::protobuf::MessageLite& message);
  // A field of the message that is a message of pieces itself.
  void AddField(int number, OutgoingMessage message);
  // A field of the message that is bytes.
  void AddField(int number, const ConstElements& bytes);
  // What AddField would add behind the field's tag and length; `size_bytes` is
  // what `message.ByteSizeLong()` has just said.
  void Append(const google::protobuf::MessageLite& message, size_t size_bytes);

  // Copies what has no owner, so that nothing is borrowed any more.
  void OwnElements();

  uint64_t size_bytes() const { return size_bytes_; }
  const std::vector<Piece>& pieces() const { return pieces_; }

 private:
  std::string& Text();  // to append to
  void AppendText(absl::string_view text);

  std::vector<Piece> pieces_;
  uint64_t size_bytes_ = 0;
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_OUTGOING_MESSAGE_H_
