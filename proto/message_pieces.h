// How both ends put a message on the wire in pieces: text that is encoded, and
// tensors' bytes, which are sent from where they lie. Knows no message's
// meaning and no gRPC.
#ifndef ATTND_PROTO_MESSAGE_PIECES_H_
#define ATTND_PROTO_MESSAGE_PIECES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace google::protobuf {
class MessageLite;
}

namespace attnd {

// Below this a copy costs less than a piece of its own.
inline constexpr size_t kSmallestPieceBytes = 4096;

// Tag and length of a length-delimited field: how many bytes they take, and
// appended.
size_t PrefixBytes(int number, uint64_t length);
void AppendPrefix(int number, uint64_t length, std::string& text);

// Appends `message`, whose ByteSizeLong() was called last and said
// `size_bytes`: protobuf's own AppendToString counts anew.
void AppendCounted(const google::protobuf::MessageLite& message,
                   size_t size_bytes, std::string& text);
// The whole field.
void AppendField(int number, const google::protobuf::MessageLite& message,
                 std::string& text);

// Hold returns a handle that keeps `owner` alive until Drop was called `drops`
// times with it. For handles that gRPC passes from one thread to another:
// thread sanitizer cannot watch gRPC, but it can watch these two functions,
// which tell it the order.
void* Hold(std::shared_ptr<const void> owner, size_t drops = 1);
void Drop(void* held);

}  // namespace attnd

#endif  // ATTND_PROTO_MESSAGE_PIECES_H_
