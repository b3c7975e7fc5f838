// Macros that return early when a step fails, for functions that return
// absl::Status or absl::StatusOr.
#ifndef ATTND_BASE_STATUS_MACROS_H_
#define ATTND_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Evaluates `expression`, an absl::Status, and returns it from the enclosing
// function unless it is OK.
#define ATTND_RETURN_IF_ERROR(expression)                               \
  do {                                                                  \
    if (absl::Status attnd_status = (expression); !attnd_status.ok()) { \
      return attnd_status;                                              \
    }                                                                   \
  } while (false)

// Evaluates `expression`, an absl::StatusOr, and returns its status from the
// enclosing function unless it is OK. Otherwise moves its value to `target`,
// which is a variable or the declaration of one:
//   ATTND_ASSIGN_OR_RETURN(const int64_t bytes, CheckedBytes(shape));
// If the type in `target` has a comma that is not inside (), give the type an
// alias. The macro expands to several statements, so it needs braces after an
// if or a loop.
#define ATTND_ASSIGN_OR_RETURN(target, expression)                             \
  ATTND_ASSIGN_OR_RETURN_(ATTND_CONCATENATE_(attnd_result_, __LINE__), target, \
                          expression)

// Parentheses would make a declaration of `target` invalid.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define ATTND_ASSIGN_OR_RETURN_(result, target, expression) \
  auto result = (expression);                               \
  if (!result.ok()) return std::move(result).status();      \
  target = *std::move(result)
// NOLINTEND(bugprone-macro-parentheses)

#define ATTND_CONCATENATE_(left, right) ATTND_CONCATENATE_NOW_(left, right)
#define ATTND_CONCATENATE_NOW_(left, right) left##right

#endif  // ATTND_BASE_STATUS_MACROS_H_
