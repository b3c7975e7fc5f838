#include "server/listen_address.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace attnd::server {
namespace {

constexpr absl::string_view kUnixPrefix = "unix:";
constexpr int kMaxPort = 65535;

absl::Status BadAddress(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(
      "--listen: expected host:port or unix:PATH, got \"", text, "\": ", why));
}

absl::Status OfOption(absl::string_view option, const absl::Status& status) {
  return {status.code(), absl::StrCat(option, ": ", status.message())};
}

std::string LockPath(const std::string& path) { return path + ".lock"; }

// Whether `fd` is still the file that `path` names.
bool Names(const std::string& path, int fd) {
  struct stat named {};
  struct stat opened {};
  return stat(path.c_str(), &named) == 0 && fstat(fd, &opened) == 0 &&
         named.st_ino == opened.st_ino && named.st_dev == opened.st_dev;
}

// Opens and locks the lock file. Its last holder may have removed it between
// the two, so then it is opened again.
absl::StatusOr<int> Lock(const std::string& path) {
  const std::string lock_path = LockPath(path);
  constexpr int kAttempts = 100;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const int fd = open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
      return absl::ErrnoToStatus(errno,
                                 absl::StrCat("cannot open ", lock_path));
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      const int error = errno;
      close(fd);
      if (error != EWOULDBLOCK) {
        return absl::ErrnoToStatus(error,
                                   absl::StrCat("cannot lock ", lock_path));
      }
      return absl::AlreadyExistsError(absl::StrCat(
          "another server listens on ", path, " (", lock_path, " is locked)"));
    }
    if (Names(lock_path, fd)) return fd;
    close(fd);
  }
  return absl::UnavailableError(
      absl::StrCat(lock_path, " is removed faster than it can be locked"));
}

// A server without our lock may listen there; only a refused connection means
// that nobody does. One whose queue is full answers EAGAIN, as the socket does
// not block.
absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) return absl::OkStatus();
  if (!S_ISSOCK(info.st_mode)) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, " exists and is no socket"));
  }
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "cannot make a socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const bool listening =
      connect(fd, reinterpret_cast<const sockaddr*>(&address),
              sizeof(address)) == 0 ||
      errno != ECONNREFUSED;
  close(fd);
  if (listening) {
    return absl::AlreadyExistsError(
        absl::StrCat("another program listens on ", path));
  }
  if (unlink(path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot remove the stale ", path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ListenAddress> ListenAddress::Parse(absl::string_view text) {
  ListenAddress address;
  if (absl::StartsWith(text, kUnixPrefix)) {
    absl::string_view path = text.substr(kUnixPrefix.size());
    if (absl::StartsWith(path, "///")) path.remove_prefix(2);
    if (path.empty()) return BadAddress(text, "the path is empty");
    if (absl::StrContains(path, '%')) {
      return BadAddress(text,
                        "the path contains '%', which gRPC would decode as in "
                        "a URI and so listen elsewhere");
    }
    constexpr size_t kMaxPathBytes = sizeof(sockaddr_un::sun_path) - 1;
    if (path.size() > kMaxPathBytes) {
      return BadAddress(
          text, absl::StrCat("the path is longer than the ", kMaxPathBytes,
                             " bytes that sockets allow"));
    }
    address.unix_path = std::string(path);
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) {
    return BadAddress(text, "the host or the port is missing");
  }
  address.host = std::string(text.substr(0, colon));
  if (absl::StrContains(address.host, ':') && address.host.front() != '[') {
    return BadAddress(text, "an IPv6 host stands in brackets");
  }
  if (!absl::SimpleAtoi(text.substr(colon + 1), &address.port) ||
      address.port < 0 || address.port > kMaxPort) {
    return BadAddress(text, "the port is no number from 0 to 65535");
  }
  return address;
}

std::string ListenAddress::Text() const {
  if (is_unix()) return absl::StrCat(kUnixPrefix, unix_path);
  return absl::StrCat(host, ":", port);
}

absl::StatusOr<UnixSocketGuard> UnixSocketGuard::Acquire(
    std::string path, absl::string_view option) {
  const absl::StatusOr<int> fd = Lock(path);
  if (!fd.ok()) return OfOption(option, fd.status());
  if (absl::Status status = RemoveStaleSocket(path); !status.ok()) {
    unlink(LockPath(path).c_str());
    close(*fd);
    return OfOption(option, status);
  }
  return UnixSocketGuard(std::move(path), *fd);
}

UnixSocketGuard::UnixSocketGuard(UnixSocketGuard&& other) noexcept
    : path_(std::move(other.path_)),
      lock_fd_(std::exchange(other.lock_fd_, -1)) {}

UnixSocketGuard::~UnixSocketGuard() {
  if (lock_fd_ < 0) return;
  unlink(path_.c_str());
  unlink(LockPath(path_).c_str());
  close(lock_fd_);
}

absl::StatusOr<AddressFile> AddressFile::Write(
    std::string path, const std::vector<std::string>& addresses) {
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  std::ofstream file(temporary);
  for (const std::string& address : addresses) file << address << '\n';
  file.close();
  struct stat written {};
  if (!file.good() || stat(temporary.c_str(), &written) != 0 ||
      std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    unlink(temporary.c_str());
    return absl::ErrnoToStatus(
        error, absl::StrCat("--address-file: cannot write ", path));
  }
  return AddressFile(std::move(path), written.st_dev, written.st_ino);
}

AddressFile::AddressFile(AddressFile&& other) noexcept
    : path_(std::exchange(other.path_, {})),
      device_(other.device_),
      inode_(other.inode_) {}

AddressFile::~AddressFile() {
  struct stat named {};
  if (path_.empty() || stat(path_.c_str(), &named) != 0) return;
  if (named.st_dev == device_ && named.st_ino == inode_) unlink(path_.c_str());
}

}  // namespace attnd::server
