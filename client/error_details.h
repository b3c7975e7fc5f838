// The details that a server sends with an error, besides its code and message.
#ifndef ATTND_CLIENT_ERROR_DETAILS_H_
#define ATTND_CLIENT_ERROR_DETAILS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace attnd::client {

// The payload of this library's statuses that holds the server's
// google.rpc.Status as serialized bytes, for programs that want details which
// are not listed below.
inline constexpr absl::string_view kStatusPayloadUrl =
    "type.googleapis.com/google.rpc.Status";

struct FieldViolation {
  std::string field;        // path from the request's root: "key.shape[3]"
  std::string description;  // what was expected and what came
};

struct ErrorDetails {
  std::string reason;  // UPPER_SNAKE_CASE, for programs to branch on
  std::string domain;  // "attnd": the server; "attnd.client": this library
  std::vector<FieldViolation> field_violations;
  std::optional<absl::Duration> retry_delay;  // set if waiting helps
};

// Returns the details that `status` carries. All of them are empty for errors
// that gRPC raises by itself, such as a refused connection, a passed deadline
// or a message that is too large.
ErrorDetails DetailsOf(const absl::Status& status);

// Returns INVALID_ARGUMENT for a field of a call, raised by this library, in
// the form of the server's own errors.
absl::Status FieldError(absl::string_view field, absl::string_view expected,
                        absl::string_view got);

// Returns an error with a reason, raised by this library.
absl::Status ReasonError(absl::StatusCode code, absl::string_view reason,
                         absl::string_view message);

// Returns INTERNAL for an answer that contradicts the contract.
absl::Status BadResponse(
    absl::string_view message = "the server's answer does not parse");

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ERROR_DETAILS_H_
