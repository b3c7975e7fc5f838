#include "server/connections/listen_address.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace attnd::server {
namespace {

constexpr absl::string_view kUnixPrefix = "unix:";
constexpr int kMaxPort = 65535;

constexpr absl::string_view kListen = "--listen";

absl::Status BadAddress(absl::string_view text, absl::string_view why,
                        absl::string_view option = kListen) {
  return absl::InvalidArgumentError(absl::StrCat(
      option, ": expected host:port", option == kListen ? " or unix:PATH" : "",
      ", got \"", text, "\": ", why));
}

absl::Status WithOption(absl::string_view option, const absl::Status& status) {
  return {status.code(), absl::StrCat(option, ": ", status.message())};
}

// ListenAddress::Parse and ShmSocket::Listen have checked that `path` fits.
sockaddr_un UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

std::string LockPath(const std::string& path) { return path + ".lock"; }

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

absl::Status NotALockFile(const std::string& path) {
  return absl::AlreadyExistsError(absl::StrCat(
      path,
      " exists and is not a lock file of attnd: expected an empty file "
      "or none"));
}

absl::Status NotASocket(const std::string& path) {
  return absl::AlreadyExistsError(
      absl::StrCat(path, " exists and is not a socket"));
}

// Whether `fd` is still the file that `path` names.
bool Names(const std::string& path, int fd) {
  struct stat named {};
  struct stat opened {};
  return lstat(path.c_str(), &named) == 0 && fstat(fd, &opened) == 0 &&
         named.st_ino == opened.st_ino && named.st_dev == opened.st_dev;
}

// Lock files are empty. Any other file of that name does not belong to attnd
// and stays as it is.
absl::StatusOr<int> OpenLockFile(const std::string& path) {
  struct stat info {};
  int fd = -1;
  // The type is checked first, because opening a device may have an effect.
  if (lstat(path.c_str(), &info) != 0 || S_ISREG(info.st_mode)) {
    fd = open(path.c_str(),
              O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
    }
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == 0) {
      return fd;
    }
    close(fd);
  }
  return NotALockFile(path);
}

// Opens and locks the lock file. If its last holder removed it before it was
// locked, tries again with a new file.
absl::StatusOr<int> Lock(const std::string& path) {
  const std::string lock_path = LockPath(path);
  constexpr int kAttempts = 100;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    ATTND_ASSIGN_OR_RETURN(const int fd, OpenLockFile(lock_path));
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

// Removes the socket at `path` if no process listens on it. A program that does
// not use the lock may listen, so this connects to the socket: only if that is
// refused does no process listen. If the queue of a listening process is full,
// the error is EAGAIN, because the socket does not block.
absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) return absl::OkStatus();
  if (!S_ISSOCK(info.st_mode)) return NotASocket(path);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "cannot create a socket");
  const sockaddr_un address = UnixAddress(path);
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

// A larger file is not one of attnd's, because the addresses of any server need
// far less.
constexpr size_t kMaxAddressFileBytes = 64 << 10;

absl::string_view KindOf(mode_t mode) {
  if (S_ISLNK(mode)) return "a symbolic link";
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a named pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

// Whether a killed server may have left `text` behind: nothing, or one address
// on each line, as AddressFile writes them.
bool AreAddresses(absl::string_view text) {
  if (text.empty()) return true;
  if (text.size() > kMaxAddressFileBytes || !absl::ConsumeSuffix(&text, "\n")) {
    return false;
  }
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const absl::StatusOr<ListenAddress> address = ListenAddress::Parse(line);
    if (!address.ok() || address->Text() != line ||
        (!address->is_unix() && address->port == 0)) {
      return false;
    }
  }
  return true;
}

// Creates a new file in the folder of `path` and sets `temporary` to its path.
// If it cannot, returns an invalid descriptor and sets errno.
UniqueFd CreateBeside(const std::string& path, std::string& temporary) {
  // There may be such a file already, because a killed server may have left it
  // behind and the system may use its process id again.
  constexpr int kAttempts = 100;
  UniqueFd fd;
  for (int attempt = 0; attempt < kAttempts && !fd.valid(); ++attempt) {
    temporary = absl::StrCat(path, ".", getpid(), ".", attempt, ".tmp");
    // O_EXCL means that no symbolic link is followed.
    fd = UniqueFd(
        open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!fd.valid() && errno != EEXIST) break;
  }
  return fd;
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
                        "the path contains '%', which gRPC would decode, so "
                        "that clients would connect to another path");
    }
    constexpr size_t kMaxPathBytes = sizeof(sockaddr_un::sun_path) - 1;
    if (path.size() > kMaxPathBytes) {
      return BadAddress(
          text, absl::StrCat("the path has ", path.size(), " bytes, at most ",
                             kMaxPathBytes, " are allowed"));
    }
    address.unix_path = std::string(path);
    return address;
  }
  return ParseTcp(text, kListen);
}

absl::StatusOr<ListenAddress> ListenAddress::ParseTcp(
    absl::string_view text, absl::string_view option) {
  ListenAddress address;
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) {
    return BadAddress(text, "the host or the port is missing", option);
  }
  address.host = std::string(text.substr(0, colon));
  if (absl::StrContains(address.host, ':') && address.host.front() != '[') {
    return BadAddress(text, "put an IPv6 address in brackets", option);
  }
  if (!absl::SimpleAtoi(text.substr(colon + 1), &address.port) ||
      address.port < 0 || address.port > kMaxPort) {
    return BadAddress(text, "the port is not a number from 0 to 65535", option);
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
  if (!fd.ok()) return WithOption(option, fd.status());
  if (absl::Status status = RemoveStaleSocket(path); !status.ok()) {
    unlink(LockPath(path).c_str());
    close(*fd);
    return WithOption(option, status);
  }
  return UnixSocketGuard(std::move(path), *fd);
}

absl::Status UnixSocketGuard::Check(const std::string& path,
                                    absl::string_view option) {
  const std::string folder = FolderOf(path);
  if (access(folder.c_str(), W_OK | X_OK) != 0) {
    return absl::ErrnoToStatus(
        errno,
        absl::StrCat(option, ": cannot make files in the folder ", folder));
  }
  struct stat info {};
  const std::string lock_path = LockPath(path);
  if (lstat(lock_path.c_str(), &info) == 0 &&
      (!S_ISREG(info.st_mode) || info.st_size != 0)) {
    return WithOption(option, NotALockFile(lock_path));
  }
  if (lstat(path.c_str(), &info) == 0 && !S_ISSOCK(info.st_mode)) {
    return WithOption(option, NotASocket(path));
  }
  return absl::OkStatus();
}

UnixSocketGuard::UnixSocketGuard(UnixSocketGuard&& other) noexcept
    : path_(std::move(other.path_)),
      lock_fd_(std::exchange(other.lock_fd_, -1)) {}

UnixSocketGuard::~UnixSocketGuard() {
  if (lock_fd_ < 0) return;
  struct stat info {};
  if (lstat(path_.c_str(), &info) == 0 && S_ISSOCK(info.st_mode)) {
    unlink(path_.c_str());
  }
  unlink(LockPath(path_).c_str());
  close(lock_fd_);
}

absl::StatusOr<UniqueFd> ListenOnUnixSocket(const std::string& path, int type,
                                            mode_t mode,
                                            absl::string_view option) {
  const auto failed = [&](absl::string_view what) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat(option, ": cannot ", what, " ", path));
  };
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return failed("create a socket for");
  const sockaddr_un address = UnixAddress(path);
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address),
           sizeof(address)) != 0) {
    return failed("bind a socket to");
  }
  // Clients can connect only after listen(). This fails if a symbolic link has
  // taken the place of the socket.
  if (fchmodat(AT_FDCWD, path.c_str(), mode, AT_SYMLINK_NOFOLLOW) != 0) {
    return failed("set the mode of");
  }
  if (listen(fd.get(), SOMAXCONN) != 0) return failed("listen on");
  return fd;
}

absl::Status AddressFile::Check(const std::string& path) {
  const auto refusal = [&path](absl::string_view what) {
    return absl::AlreadyExistsError(
        absl::StrCat("--address-file: ", path, " exists and is ", what,
                     ": name a path that does not exist, an empty file, or an "
                     "address file that a killed server left behind"));
  };
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) {
    if (errno != ENOENT) {
      return absl::ErrnoToStatus(
          errno,
          absl::StrCat("--address-file: cannot find out what ", path, " is"));
    }
    const std::string folder = FolderOf(path);
    if (access(folder.c_str(), W_OK | X_OK) == 0) return absl::OkStatus();
    return absl::ErrnoToStatus(
        errno,
        absl::StrCat("--address-file: cannot write to the folder ", folder));
  }
  if (!S_ISREG(info.st_mode)) return refusal(KindOf(info.st_mode));
  // O_NONBLOCK keeps open() from waiting if a pipe has taken the place of the
  // file.
  const UniqueFd fd(
      open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  std::string text(kMaxAddressFileBytes + 1, '\0');
  const ssize_t size = read(fd.get(), text.data(), text.size());
  if (size < 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("--address-file: cannot read ", path));
  }
  text.resize(static_cast<size_t>(size));
  if (!AreAddresses(text)) return refusal("a file with other contents");
  return absl::OkStatus();
}

absl::StatusOr<AddressFile> AddressFile::Write(
    std::string path, const std::vector<std::string>& addresses) {
  ATTND_RETURN_IF_ERROR(Check(path));
  std::string text;
  for (const std::string& address : addresses) {
    absl::StrAppend(&text, address, "\n");
  }
  std::string temporary;
  const UniqueFd fd = CreateBeside(path, temporary);
  struct stat written {};
  if (!fd.valid() ||
      write(fd.get(), text.data(), text.size()) !=
          static_cast<ssize_t>(text.size()) ||
      fstat(fd.get(), &written) != 0 ||
      std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    if (fd.valid()) unlink(temporary.c_str());
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
  if (path_.empty() || lstat(path_.c_str(), &named) != 0) return;
  if (named.st_dev == device_ && named.st_ino == inode_) unlink(path_.c_str());
}

}  // namespace attnd::server
