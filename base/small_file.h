// Reads files that a user has named.
#ifndef ATTND_BASE_SMALL_FILE_H_
#define ATTND_BASE_SMALL_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace attnd {

// Returns the contents of the file at `path`. Follows symbolic links. Returns
// an error whose message says why, without the path, if the file cannot be
// read, is larger than `max_bytes`, or is not a regular file. Never waits for
// the other end of a pipe.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes);

}  // namespace attnd

#endif  // ATTND_BASE_SMALL_FILE_H_
