// Errors that say which field of a request is wrong. A status carries the
// field's path and a reason as payloads. The code that sends a status to a
// client turns them into details of its protocol.
#ifndef ATTND_BASE_FIELD_ERROR_H_
#define ATTND_BASE_FIELD_ERROR_H_

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace attnd {

// Returns INVALID_ARGUMENT for one field. `field` is its path from the
// request's root, such as "key.shape[3]". Core calls tensors "query", "key" and
// "value", and options "options.<name>". The message reads "<field>: expected
// <expected>, got <got>".
absl::Status FieldError(std::string_view field, std::string_view expected,
                        std::string_view got);

// Returns "expected <expected>, got <got>", the part of that message that says
// what is wrong.
std::string ExpectedGot(absl::string_view expected, absl::string_view got);

// Returns the path of the field that `status` names, or nothing.
std::optional<std::string> FieldOf(const absl::Status& status);

// Returns `status` with another path in payload and message, for a caller that
// knows the field by another name. Does nothing if `status` names no field.
absl::Status WithField(const absl::Status& status, std::string_view field);

// Returns `status` with a reason in UPPER_SNAKE_CASE, on which programs branch.
absl::Status WithReason(absl::Status status, std::string_view reason);

// The reason of a problem whose bytes or steps do not fit an int64.
inline constexpr std::string_view kInt64RangeReason = "INT64_RANGE";

// Returns the reason that `status` carries, or nothing.
std::optional<std::string> ReasonOf(const absl::Status& status);

}  // namespace attnd

#endif  // ATTND_BASE_FIELD_ERROR_H_
