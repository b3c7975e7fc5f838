// Sizes of messages on which both ends rely.
#ifndef ATTND_WIRE_MESSAGE_SIZES_H_
#define ATTND_WIRE_MESSAGE_SIZES_H_

#include <cstdint>

namespace attnd {

// The most data that a chunk of a streamed tensor carries.
inline constexpr int64_t kMaxChunkBytes = int64_t{1} << 20;

// An upper bound of the bytes that a message holds besides its tensors' data.
inline constexpr int64_t kMessageEnvelopeBytes = 4096;

// The smallest limit for messages that a server can be given. Every server
// takes a request of this size, and sends an answer of this size.
inline constexpr int64_t kMinMessageLimitBytes = int64_t{64} << 10;

}  // namespace attnd

#endif  // ATTND_WIRE_MESSAGE_SIZES_H_
