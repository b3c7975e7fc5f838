// The messages of the shared-memory socket, which docs/shared-memory.md
// describes: pure functions over bytes that anybody may have sent. Each end
// parses what the other encodes.
#ifndef ATTND_WIRE_SHM_PROTOCOL_H_
#define ATTND_WIRE_SHM_PROTOCOL_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attnd {

// The size of a handle, which consists of 128 random bits.
inline constexpr size_t kHandleBytes = 16;
// No valid request is longer. A receiver that reads one byte more can tell.
inline constexpr size_t kMaxShmRequestBytes = 8 + kHandleBytes;
// No reply is longer.
inline constexpr size_t kMaxShmReplyBytes = 1024;

struct ShmRequest {
  enum class Type : uint16_t { kRegister = 1, kUnregister = 2 };
  Type type = Type::kRegister;
  std::string handle;  // kHandleBytes bytes for kUnregister, empty otherwise
};

// The request to register a memfd, whose descriptor travels beside it.
std::string EncodeRegister();

// Parses a request that came with this many descriptors. Returns UNIMPLEMENTED
// for another version of the protocol, and INVALID_ARGUMENT for any other
// error. The text is "<what>: expected <expected>, got <got>".
absl::StatusOr<ShmRequest> ParseShmRequest(absl::string_view message,
                                           size_t descriptors);

// The replies. `status` is not OK. Its text is cut to fit a reply.
std::string EncodeRegistered(absl::string_view handle, int64_t size_bytes);
std::string EncodeUnregistered();
std::string EncodeShmError(const absl::Status& status);

// Parses the reply to EncodeRegister. Returns the handle of the region, or the
// error that the server replied, or INTERNAL if the bytes are no such reply.
absl::StatusOr<std::string> ParseRegistered(absl::string_view reply);

}  // namespace attnd

#endif  // ATTND_WIRE_SHM_PROTOCOL_H_
