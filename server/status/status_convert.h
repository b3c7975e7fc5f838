// Converts an absl::Status to what a client receives: a code, a message and
// google.rpc details. Every error of attnd passes through here. Does not use
// gRPC, so that tests do not need it.
#ifndef ATTND_SERVER_STATUS_STATUS_CONVERT_H_
#define ATTND_SERVER_STATUS_STATUS_CONVERT_H_

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace attnd::server {

// The status that a client gets in the trailers of a call.
struct WireStatus {
  int code = 0;  // of google.rpc.Code, which numbers codes as Abseil does
  std::string message;
  std::string details;  // a serialized google.rpc.Status; empty if OK
  std::optional<std::chrono::milliseconds> retry_delay;  // as in RetryInfo
};

// Returns the code that a client gets for `code`: INTERNAL for those that attnd
// never uses on purpose, because they show a bug of attnd.
absl::StatusCode WireCode(absl::StatusCode code);

// Returns the reason that a client gets for `status`, which is not OK
// (wire/reasons.h).
std::string WireReason(const absl::Status& status);

// Converts `status`. Unless it is OK, the details have
// - ErrorInfo, with the reason and the domain "attnd",
// - BadRequest, if `status` names a field or if the error concerns the message
//   as a whole, for example because it does not parse; the field is then empty,
// - RetryInfo, if `status` has a retry delay.
// Long texts are cut, so that the status stays well below the 8 KiB that gRPC
// allows for trailers.
WireStatus ToWireStatus(const absl::Status& status);

// Returns `status` with the time that a client should wait before it tries the
// call again.
absl::Status WithRetryDelay(absl::Status status,
                            std::chrono::milliseconds delay);

// Returns an error with `code` and `reason` that names `field`. Its text is
// "<field>: <why>".
absl::Status RefuseField(absl::StatusCode code, absl::string_view field,
                         absl::string_view why, absl::string_view reason);

}  // namespace attnd::server

#endif  // ATTND_SERVER_STATUS_STATUS_CONVERT_H_
