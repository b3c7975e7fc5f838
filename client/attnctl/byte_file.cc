#include "client/attnctl/byte_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace attnd::attnctl {
namespace {

constexpr mode_t kNewFileMode = 0666;  // before the umask

// Returns the descriptor of this process that `path` names, if it names one.
std::optional<int> OwnDescriptor(absl::string_view path) {
  if (path == "/dev/stdin") return STDIN_FILENO;
  if (path == "/dev/stdout") return STDOUT_FILENO;
  if (path == "/dev/stderr") return STDERR_FILENO;
  int fd = -1;
  if ((absl::ConsumePrefix(&path, "/dev/fd/") ||
       absl::ConsumePrefix(&path, "/proc/self/fd/")) &&
      absl::SimpleAtoi(path, &fd)) {
    return fd;
  }
  return std::nullopt;
}

// Identifies a file, pipe or socket. All paths to it have the same FileId.
using FileId = std::pair<dev_t, ino_t>;

FileId IdOf(const struct stat& status) {
  return {status.st_dev, status.st_ino};
}

// Returns nullopt if there is no such file.
std::optional<FileId> IdOf(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return std::nullopt;
  return IdOf(status);
}

}  // namespace

ByteFile::ByteFile(std::string path, int fd)
    : path_(std::move(path)), fd_(fd) {}

ByteFile::ByteFile(ByteFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

ByteFile::~ByteFile() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<ByteFile> ByteFile::Open(const std::string& path, int flags) {
  const std::optional<int> own = OwnDescriptor(path);
  ByteFile file(path, own ? fcntl(*own, F_DUPFD_CLOEXEC, 0)
                          : open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY,
                                 kNewFileMode));
  if (file.fd_ < 0) return file.Error("cannot open");
  return file;
}

absl::StatusOr<ByteFile> ByteFile::OpenToRead(const std::string& path) {
  return Open(path, O_RDONLY);
}

absl::StatusOr<ByteFile> ByteFile::OpenToWrite(const std::string& path) {
  return Open(path, O_WRONLY | O_CREAT | O_TRUNC);
}

absl::StatusOr<size_t> ByteFile::Read(std::span<std::byte> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = read(fd_, bytes.data() + done, bytes.size() - done);
    if (got == 0) break;
    if (got > 0) {
      done += static_cast<size_t>(got);
    } else if (!ShouldRetry(POLLIN)) {
      return Error("cannot read");
    }
  }
  return done;
}

absl::Status ByteFile::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = write(fd_, bytes.data(), bytes.size());
    if (put >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(put));
    } else if (!ShouldRetry(POLLOUT)) {
      return Error("cannot write");
    }
  }
  return absl::OkStatus();
}

absl::Status ByteFile::Close() {
  return close(std::exchange(fd_, -1)) == 0 ? absl::OkStatus()
                                            : Error("cannot write");
}

absl::Status ByteFile::Error(absl::string_view what) const {
  const int error = errno;
  return absl::ErrnoToStatus(error, absl::StrCat(path_, ": ", what));
}

bool ByteFile::ShouldRetry(int16_t events) const {
  if (errno == EINTR) return true;
  // Another process that shares the descriptor may have made it non-blocking.
  if (errno != EAGAIN) return false;
  pollfd waiting = {.fd = fd_, .events = events, .revents = 0};
  return poll(&waiting, 1, /*timeout=*/-1) >= 0 || errno == EINTR;
}

bool IsStandardOutput(const std::string& path) {
  struct stat status;
  return fstat(STDOUT_FILENO, &status) == 0 && IdOf(status) == IdOf(path);
}

bool IsSameFile(const std::string& a, const std::string& b) {
  std::error_code error;
  if (std::filesystem::is_character_file(a, error)) return false;
  if (const auto id = IdOf(a)) return id == IdOf(b);
  // The file `a` does not exist yet, so compare the paths.
  const auto full_path = [&error](const std::string& path) {
    return std::filesystem::weakly_canonical(
        std::filesystem::absolute(path, error), error);
  };
  const auto path = full_path(a);
  return !path.empty() && path == full_path(b);
}

}  // namespace attnd::attnctl
