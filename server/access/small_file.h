// Reads files that an option names.
#ifndef ATTND_SERVER_ACCESS_SMALL_FILE_H_
#define ATTND_SERVER_ACCESS_SMALL_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attnd::server {

// Returns the contents of the file of `option` at `path`. Follows symbolic
// links. Returns a FileError if it cannot be read, is larger than 1 MiB, or is
// not a regular file. Never blocks on a pipe.
absl::StatusOr<std::string> ReadSmallFile(absl::string_view option,
                                          const std::string& path);

// Returns INVALID_ARGUMENT with the text "OPTION: PATH: WHY".
absl::Status FileError(absl::string_view option, absl::string_view path,
                       absl::string_view why);

}  // namespace attnd::server

#endif  // ATTND_SERVER_ACCESS_SMALL_FILE_H_
