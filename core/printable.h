// Makes text from outside safe to show on a terminal or in a line of a log.
#ifndef ATTND_CORE_PRINTABLE_H_
#define ATTND_CORE_PRINTABLE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace attnd {

// Returns `text` with each byte of what is not printable written as \xNN:
// control characters (newlines and terminal escapes among them), bytes that are
// not UTF-8, and the invisible characters of Unicode that break lines or change
// the direction of writing. The result is one line of valid UTF-8. A backslash
// stays a backslash, so the result is for people and not to be decoded.
std::string Printable(absl::string_view text);

}  // namespace attnd

#endif  // ATTND_CORE_PRINTABLE_H_
