// The places where the server listens: their spelling, the lock that keeps two
// servers off one unix socket, and the modes of those sockets. Knows no gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_LISTEN_ADDRESS_H_
#define ATTND_SERVER_CONNECTIONS_LISTEN_ADDRESS_H_

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/unique_fd.h"

namespace attnd::server {

// "host:port" or "unix:PATH".
struct ListenAddress {
  std::string host;       // of TCP, in brackets where it is IPv6
  int port = 0;           // of TCP; 0 picks a free one
  std::string unix_path;  // empty for TCP

  // INVALID_ARGUMENT that says what is wrong with the text.
  static absl::StatusOr<ListenAddress> Parse(absl::string_view text);

  bool is_unix() const { return !unix_path.empty(); }
  // As gRPC and clients spell it.
  std::string Text() const;
};

// Holds PATH.lock while a server listens on PATH; the destructor removes both.
// gRPC alone would take a living server's socket away without a word.
class UnixSocketGuard {
 public:
  // Removes a socket at the path on which no process listens. ALREADY_EXISTS if
  // a process listens on it, if PATH is not a socket, or if PATH.lock is not an
  // empty file. Symbolic links are not followed. Errors begin with `option`,
  // which named the path.
  static absl::StatusOr<UnixSocketGuard> Acquire(std::string path,
                                                 absl::string_view option);

  UnixSocketGuard(UnixSocketGuard&& other) noexcept;
  UnixSocketGuard& operator=(UnixSocketGuard&&) = delete;
  ~UnixSocketGuard();

 private:
  UnixSocketGuard(std::string path, int lock_fd)
      : path_(std::move(path)), lock_fd_(lock_fd) {}

  std::string path_;
  int lock_fd_;
};

// The mode of a socket that only the server's own uid, and root, may use.
inline constexpr mode_t kOwnersSocketMode = 0600;

// Makes a socket of `type` (SOCK_STREAM or SOCK_SEQPACKET) that does not block
// and listens on `path`, whose UnixSocketGuard the caller holds. Sets its
// file's mode before anybody can connect, whatever the umask. Errors begin with
// `option`, which named the path.
absl::StatusOr<UniqueFd> ListenOnUnixSocket(const std::string& path, int type,
                                            mode_t mode,
                                            absl::string_view option);

// Tells scripts where a server listens. The destructor removes the file, unless
// another server has put its own in that place since.
class AddressFile {
 public:
  // Returns the error with which Write would refuse the path, if that can be
  // known already. Call it before the server begins to listen.
  static absl::Status Check(const std::string& path);

  // Writes one address a line. Replaces the file in one step, so that a reader
  // sees all addresses of one server and never some. ALREADY_EXISTS if there is
  // anything but an empty file or a file of addresses, which a killed server
  // leaves behind. Symbolic links are not followed.
  static absl::StatusOr<AddressFile> Write(
      std::string path, const std::vector<std::string>& addresses);

  AddressFile(AddressFile&& other) noexcept;
  AddressFile& operator=(AddressFile&&) = delete;
  ~AddressFile();

 private:
  AddressFile(std::string path, dev_t device, ino_t inode)
      : path_(std::move(path)), device_(device), inode_(inode) {}

  std::string path_;
  dev_t device_;
  ino_t inode_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_LISTEN_ADDRESS_H_
