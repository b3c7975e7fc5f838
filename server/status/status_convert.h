// The one place where an absl::Status becomes what a client receives: code,
// message and google.rpc details. Knows no gRPC, so that it is tested alone.
#ifndef ATTND_SERVER_STATUS_STATUS_CONVERT_H_
#define ATTND_SERVER_STATUS_STATUS_CONVERT_H_

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace attnd::server {

// What travels in a call's trailers.
struct WireStatus {
  int code = 0;  // of google.rpc.Code; the numbers of gRPC and Abseil are equal
  std::string message;
  std::string details;  // a serialized google.rpc.Status; empty where OK
  std::optional<std::chrono::milliseconds> retry_delay;  // as in RetryInfo
};

// Details always hold ErrorInfo (reason, domain "attnd"); BadRequest where
// `status` names a field (or the message did not parse: an empty field);
// RetryInfo where it carries a delay. Texts are cut so that the whole stays
// well inside the 8 KiB that gRPC allows for trailers.
WireStatus ToWireStatus(const absl::Status& status);

// `status` with the delay after which a retry may succeed.
absl::Status WithRetryDelay(absl::Status status,
                            std::chrono::milliseconds delay);

// Any code for one field; "<field>: <why>".
absl::Status RefuseField(absl::StatusCode code, absl::string_view field,
                         absl::string_view why, absl::string_view reason);

// UNIMPLEMENTED for one field that is set to what no build does yet.
absl::Status NotImplementedError(absl::string_view field,
                                 absl::string_view what);

}  // namespace attnd::server

#endif  // ATTND_SERVER_STATUS_STATUS_CONVERT_H_
