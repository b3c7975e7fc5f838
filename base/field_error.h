// Makes errors that say which field of a request is wrong. The status carries
// the path of the field and a reason as payloads. The code that sends the
// status to a client converts them to what its protocol has for them.
#ifndef ATTND_BASE_FIELD_ERROR_H_
#define ATTND_BASE_FIELD_ERROR_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace attnd {

// Returns INVALID_ARGUMENT with the message "<field>: expected <expected>, got
// <got>". `field` is the path of the field from the root of the request, such
// as "key.shape[3]". In errors of core, tensors have the names "query", "key"
// and "value", and options have the names "options.<name>".
absl::Status FieldError(std::string_view field, std::string_view expected,
                        std::string_view got);

// Returns "expected <expected>, got <got>", as in the message of a FieldError.
std::string ExpectedGot(absl::string_view expected, absl::string_view got);

// Returns `shape` as errors write it, for example "[2, 64]".
std::string ShapeText(const std::vector<int64_t>& shape);

// Returns the path of the field that `status` names, or nothing.
std::optional<std::string> FieldOf(const absl::Status& status);

// Returns `status` with the path `field` in its payload and its message,
// instead of the path that it has. Use it if the caller knows the field by
// another name. Returns `status` itself if it does not name a field.
absl::Status WithField(const absl::Status& status, std::string_view field);

// Returns `status` with a reason in UPPER_SNAKE_CASE, by which programs can
// tell errors apart.
absl::Status WithReason(absl::Status status, std::string_view reason);

// The reason of the error for a problem whose bytes or arithmetic operations do
// not fit an int64.
inline constexpr std::string_view kInt64RangeReason = "INT64_RANGE";

// Returns the reason that `status` carries, or nothing.
std::optional<std::string> ReasonOf(const absl::Status& status);

}  // namespace attnd

#endif  // ATTND_BASE_FIELD_ERROR_H_
