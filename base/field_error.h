// Makes errors that say which field of a request is wrong. The absl::Status
// carries the path of the field and a reason as payloads, which server/status/
// converts to google.rpc details.
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
// as "key.shape[3]". Errors of core/ call the tensors "query", "key" and
// "value", and the options "options.<name>".
absl::Status FieldError(std::string_view field, std::string_view expected,
                        std::string_view got);

// Returns "expected <expected>, got <got>", as in the message of a FieldError.
std::string ExpectedGot(absl::string_view expected, absl::string_view got);

// Returns `shape` as errors write it, for example "[2, 64]".
std::string ShapeText(const std::vector<int64_t>& shape);

// Returns the path of the field that `status` names, or nothing.
std::optional<std::string> FieldOf(const absl::Status& status);

// Returns `status` with `field` instead of the path that it names, both in its
// payload and in its message. Use it if the client knows the field by another
// name. Returns `status` unchanged if it names no field.
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
