// Reads the details that a server sends with an error in addition to its code
// and its message, such as the reason. Also makes errors of this library that
// carry the same details.
#ifndef ATTND_CLIENT_ERROR_DETAILS_H_
#define ATTND_CLIENT_ERROR_DETAILS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace attnd::client {

// The key for absl::Status::GetPayload() under which an error of a call has the
// server's google.rpc.Status, as serialized bytes. You need it only for details
// that ErrorDetails does not have.
inline constexpr absl::string_view kStatusPayloadUrl =
    "type.googleapis.com/google.rpc.Status";

// A field of the request that is wrong.
struct FieldViolation {
  std::string field;        // path from the request's root: "key.shape[3]"
  std::string description;  // what was expected and what came
};

// The details of an error. A detail that the error does not have is empty.
struct ErrorDetails {
  std::string reason;  // in UPPER_SNAKE_CASE; tells programs what is wrong
  std::string domain;  // "attnd": the server; "attnd.client": this library
  std::vector<FieldViolation> field_violations;
  // How long to wait before the next attempt. Set if a later call can succeed.
  std::optional<absl::Duration> retry_delay;
};

// Returns the details that `status` carries. All of them are empty for errors
// that gRPC raises by itself, such as a refused connection, a passed deadline
// or a message that is too large.
ErrorDetails DetailsOf(const absl::Status& status);

// Returns INVALID_ARGUMENT for a field of a call that this library itself
// rejects. It has the same text and details as an error of the server for a
// field.
absl::Status FieldError(absl::string_view field, absl::string_view expected,
                        absl::string_view got);

// Returns an error that this library raises, with a reason.
absl::Status ReasonError(absl::StatusCode code, absl::string_view reason,
                         absl::string_view message);

// Returns the INTERNAL error for an answer that contradicts the contract.
absl::Status BadResponse(
    absl::string_view message = "the server's answer does not parse");

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ERROR_DETAILS_H_
