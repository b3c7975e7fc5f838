#include "server/access/small_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace attnd::server {

absl::Status FileError(absl::string_view option, absl::string_view path,
                       absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(option, ": ", path, ": ", why));
}

absl::StatusOr<std::string> ReadSmallFile(absl::string_view option,
                                          const std::string& path) {
  constexpr size_t kMaxBytes = size_t{1} << 20;
  constexpr size_t kStepBytes = size_t{16} << 10;
  const auto cannot = [&](absl::string_view why) {
    return FileError(option, path, absl::StrCat("cannot read it: ", why));
  };
  // Without O_NONBLOCK, opening a pipe would wait for a writer.
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info {};
  if (!fd.valid() || fstat(fd.get(), &info) != 0) {
    return cannot(std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) return cannot("it is not a regular file");
  std::string text;
  for (;;) {
    const size_t size = text.size();
    text.resize(size + kStepBytes);
    const ssize_t bytes = read(fd.get(), text.data() + size, kStepBytes);
    if (bytes < 0) return cannot(std::strerror(errno));
    text.resize(size + static_cast<size_t>(bytes));
    if (bytes == 0) return text;
    if (text.size() > kMaxBytes) return cannot("it is larger than 1 MiB");
  }
}

}  // namespace attnd::server
