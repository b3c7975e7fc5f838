// How a refusal says which field is at fault. Knows neither gRPC nor protobuf:
// the path and the reason ride on absl::Status as payloads, and whoever owns
// the wire turns them into its own kind of detail.
#ifndef ATTND_CORE_FIELD_ERROR_H_
#define ATTND_CORE_FIELD_ERROR_H_

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace attnd {

// INVALID_ARGUMENT for one field. `field` is its path from the request's root,
// "key.shape[3]"; core names tensors "query", "key", "value" and options
// "options.<name>". The message reads "<field>: expected <expected>, got
// <got>".
absl::Status FieldError(std::string_view field, std::string_view expected,
                        std::string_view got);

// The field that `status` names, or nothing.
std::optional<std::string> FieldOf(const absl::Status& status);

// `status` with its field replaced, message included: a caller that knows the
// tensor "query" under another name says so here.
absl::Status WithField(const absl::Status& status, std::string_view field);

// `status` with a reason in UPPER_SNAKE_CASE for programs to branch on.
absl::Status WithReason(absl::Status status, std::string_view reason);

// The reason of problems whose bytes or steps do not fit an int64.
inline constexpr std::string_view kInt64RangeReason = "INT64_RANGE";

// The reason that `status` carries, or nothing.
std::optional<std::string> ReasonOf(const absl::Status& status);

}  // namespace attnd

#endif  // ATTND_CORE_FIELD_ERROR_H_
