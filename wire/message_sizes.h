// Sizes of messages on which the client and the server must agree.
#ifndef ATTND_WIRE_MESSAGE_SIZES_H_
#define ATTND_WIRE_MESSAGE_SIZES_H_

#include <cstdint>
#include <limits>

namespace attnd {

// The most bytes of data that one chunk of a streamed tensor can carry.
inline constexpr int64_t kMaxChunkBytes = int64_t{1} << 20;

// An upper bound of the bytes that a message takes in addition to the data of
// its tensors and the lists in its options.
inline constexpr int64_t kMessageEnvelopeBytes = 4096;

// The smallest value of the server's option --max-message-bytes. So every
// server accepts a request of this size and sends an answer of this size.
inline constexpr int64_t kMinMessageLimitBytes = int64_t{64} << 10;

// While the server waits for a client, the client has to send or read this many
// bytes within each --stream-idle-timeout, or complete the message that the
// server waits for.
inline constexpr int64_t kMinProgressBytes = int64_t{64} << 10;

// The largest message limit, because gRPC counts the bytes of a message in an
// int.
inline constexpr int64_t kMaxMessageLimitBytes =
    std::numeric_limits<int32_t>::max();

}  // namespace attnd

#endif  // ATTND_WIRE_MESSAGE_SIZES_H_
