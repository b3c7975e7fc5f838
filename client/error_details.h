// What a server said beside an error's code and message. Knows google.rpc's
// messages, not how a status travels.
#ifndef ATTND_CLIENT_ERROR_DETAILS_H_
#define ATTND_CLIENT_ERROR_DETAILS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace attnd::client {

// Where a status of this library keeps the server's google.rpc.Status, as
// serialized bytes, for programs that want details not listed below.
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
  std::optional<absl::Duration> retry_delay;  // set where waiting helps
};

// What `status` carries. All empty where there is nothing, as on errors that
// gRPC raises by itself: a refused connection, a deadline, a message too large.
ErrorDetails DetailsOf(const absl::Status& status);

// INVALID_ARGUMENT for a field of a call, raised on this side of the wire, in
// the form that the server's own refusals have.
absl::Status FieldError(absl::string_view field, absl::string_view expected,
                        absl::string_view got);

// `code` with a reason, raised on this side of the wire.
absl::Status ReasonError(absl::StatusCode code, absl::string_view reason,
                         absl::string_view message);

// INTERNAL: what a server answered is nothing that the contract has.
absl::Status BadResponse(
    absl::string_view message = "the server's answer does not parse");

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ERROR_DETAILS_H_
