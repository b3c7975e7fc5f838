// The messages of the shared-memory socket, as docs/shared-memory.md has them:
// pure functions over bytes that anybody may have sent. Knows no socket and no
// memory.
#ifndef ATTND_WIRE_SHM_PROTOCOL_H_
#define ATTND_WIRE_SHM_PROTOCOL_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attnd {

// Of a handle: 128 random bits.
inline constexpr size_t kHandleBytes = 16;
// No valid request is longer; a receiver needs one byte more to tell.
inline constexpr size_t kMaxShmRequestBytes = 8 + kHandleBytes;

struct ShmRequest {
  enum class Type : uint16_t { kRegister = 1, kUnregister = 2 };
  Type type = Type::kRegister;
  std::string handle;  // of kUnregister: kHandleBytes bytes
};

// `descriptors` is how many came with the message. INVALID_ARGUMENT, or
// UNIMPLEMENTED for another version: "<what>: expected <expected>, got <got>".
absl::StatusOr<ShmRequest> ParseShmRequest(absl::string_view message,
                                           size_t descriptors);

std::string EncodeRegistered(absl::string_view handle, int64_t size_bytes);
std::string EncodeUnregistered();
// `status` is not OK.
std::string EncodeShmError(const absl::Status& status);

}  // namespace attnd

#endif  // ATTND_WIRE_SHM_PROTOCOL_H_
