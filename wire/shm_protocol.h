// Encodes and parses the messages with which a client registers shared memory
// at the server's unix socket. Client and server use this.
// docs/shared-memory.md describes the protocol. The functions do no input or
// output, and check every byte that they parse.
#ifndef ATTND_WIRE_SHM_PROTOCOL_H_
#define ATTND_WIRE_SHM_PROTOCOL_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attnd {

// The size of the handle of a region of shared memory: 128 random bits.
inline constexpr size_t kHandleBytes = 16;
// The size of the longest valid request. A server that reads up to one byte
// more notices requests that are too long.
inline constexpr size_t kMaxShmRequestBytes = 8 + kHandleBytes;
// The size of the longest reply.
inline constexpr size_t kMaxShmReplyBytes = 1024;

struct ShmRequest {
  enum class Type : uint16_t { kRegister = 1, kUnregister = 2 };
  Type type = Type::kRegister;
  std::string handle;  // kHandleBytes bytes for kUnregister, empty otherwise
};

// Returns the request to register a memfd. Send the file descriptor of the
// memfd together with it.
std::string EncodeRegister();

// Parses a request that arrived together with `descriptors` file descriptors.
// Returns UNIMPLEMENTED if it has another version of the protocol, and
// INVALID_ARGUMENT for any other error. The text of an error is
// "<what>: expected <expected>, got <got>".
absl::StatusOr<ShmRequest> ParseShmRequest(absl::string_view message,
                                           size_t descriptors);

// Return the replies to a registration, to an unregistration, and to either of
// them that failed with `status`, which must not be OK. The text of `status` is
// cut so that the reply fits kMaxShmReplyBytes.
std::string EncodeRegistered(absl::string_view handle, int64_t size_bytes);
std::string EncodeUnregistered();
std::string EncodeShmError(const absl::Status& status);

// Parses the reply to the request that EncodeRegister returned. Returns the
// handle of the region, or the error that the server sent. Returns INTERNAL if
// the bytes are not a reply.
absl::StatusOr<std::string> ParseRegistered(absl::string_view reply);

}  // namespace attnd

#endif  // ATTND_WIRE_SHM_PROTOCOL_H_
