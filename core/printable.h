// Makes text from outside safe to show on a terminal or in a line of a log.
#ifndef ATTND_CORE_PRINTABLE_H_
#define ATTND_CORE_PRINTABLE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace attnd {

// Returns `text` with the bytes of unprintable characters written as \xNN.
// These are control characters (including newlines and terminal escapes), bytes
// that are not UTF-8, and the invisible characters of Unicode that break lines
// or change the direction of writing. The result is one line of valid UTF-8. A
// backslash stays as it is, so the result cannot be decoded.
std::string Printable(absl::string_view text);

}  // namespace attnd

#endif  // ATTND_CORE_PRINTABLE_H_
