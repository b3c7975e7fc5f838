// Errors that name the field at fault. The path of the field and the reason are
// payloads of an absl::Status, because the core knows neither gRPC nor
// protobuf. The server turns them into details of a gRPC status.
#ifndef ATTND_CORE_FIELD_ERROR_H_
#define ATTND_CORE_FIELD_ERROR_H_

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace attnd {

// Returns INVALID_ARGUMENT for one field. `field` is its path from the root of
// the request, such as "key.shape[3]". The core calls tensors "query", "key"
// and "value", and options "options.<name>". The message is "<field>: expected
// <expected>, got <got>".
absl::Status FieldError(std::string_view field, std::string_view expected,
                        std::string_view got);

// Returns the field that `status` names, or nothing.
std::optional<std::string> FieldOf(const absl::Status& status);

// Returns `status` with another field, in its message too. Callers whose
// requests have another name for the tensor "query" need this.
absl::Status WithField(const absl::Status& status, std::string_view field);

// Returns `status` with a reason in UPPER_SNAKE_CASE, which programs can test
// for.
absl::Status WithReason(absl::Status status, std::string_view reason);

// The reason if the bytes or steps of a problem do not fit an int64.
inline constexpr std::string_view kInt64RangeReason = "INT64_RANGE";

// Returns the reason that `status` has, or nothing.
std::optional<std::string> ReasonOf(const absl::Status& status);

}  // namespace attnd

#endif  // ATTND_CORE_FIELD_ERROR_H_
