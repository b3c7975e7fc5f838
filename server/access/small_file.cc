#include "server/access/small_file.h"

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "base/small_file.h"

namespace attnd::server {

absl::Status FileError(absl::string_view option, absl::string_view path,
                       absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(option, ": ", path, ": ", why));
}

absl::StatusOr<std::string> ReadSmallFile(absl::string_view option,
                                          const std::string& path) {
  constexpr size_t kMaxBytes = size_t{1} << 20;
  absl::StatusOr<std::string> text = attnd::ReadSmallFile(path, kMaxBytes);
  if (text.ok()) return text;
  return FileError(option, path,
                   absl::StrCat("cannot read it: ", text.status().message()));
}

}  // namespace attnd::server
