#include "base/small_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace attnd {

absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes) {
  constexpr size_t kStepBytes = size_t{16} << 10;
  // Without O_NONBLOCK, opening a pipe would wait for a writer.
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info {};
  if (!fd.valid() || fstat(fd.get(), &info) != 0) {
    return absl::NotFoundError(std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError("it is not a regular file");
  }
  std::string text;
  for (;;) {
    const size_t size = text.size();
    text.resize(size + kStepBytes);
    const ssize_t bytes = read(fd.get(), text.data() + size, kStepBytes);
    if (bytes < 0 && errno != EINTR) {
      return absl::NotFoundError(std::strerror(errno));
    }
    text.resize(size + static_cast<size_t>(bytes < 0 ? 0 : bytes));
    if (bytes == 0) return text;
    if (text.size() > max_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("it is larger than ", max_bytes >> 20, " MiB"));
    }
  }
}

}  // namespace attnd
