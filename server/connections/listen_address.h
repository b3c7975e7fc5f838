// Parses the addresses of --listen, opens unix sockets so that no two servers
// use the same path, and writes the file of --address-file. Does not use gRPC.
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

// An address to listen on: either a host and a port of TCP, or a unix socket.
struct ListenAddress {
  std::string host;       // for TCP; an IPv6 address is in brackets
  int port = 0;           // for TCP; 0 stands for any free port
  std::string unix_path;  // empty for TCP

  // Parses "host:port" or "unix:PATH". INVALID_ARGUMENT says what is wrong with
  // the text.
  static absl::StatusOr<ListenAddress> Parse(absl::string_view text);
  // Parses "host:port". Errors begin with `option`, the option that has the
  // text.
  static absl::StatusOr<ListenAddress> ParseTcp(absl::string_view text,
                                                absl::string_view option);

  bool is_unix() const { return !unix_path.empty(); }
  // Whether it stands for all addresses of the machine, IPv4 and IPv6.
  bool is_wildcard() const { return host == "0.0.0.0" || host == "[::]"; }
  // Returns the address in the form that Parse and the clients of gRPC accept.
  std::string Text() const;
};

// Reserves the path of a unix socket for this server, by a lock on PATH.lock.
// The destructor removes the socket and the lock file. Without the lock, a
// second server would take over the path of a running server, and neither of
// them would notice.
class UnixSocketGuard {
 public:
  // Locks the file PATH.lock, and removes a socket at `path` that a killed
  // server left there. Returns ALREADY_EXISTS if a process listens on the path,
  // if `path` is something else than a socket, or if PATH.lock is not an empty
  // file. Does not follow symbolic links. Error messages begin with `option`,
  // the name of the option that has the path.
  static absl::StatusOr<UnixSocketGuard> Acquire(std::string path,
                                                 absl::string_view option);

  // Returns the error that Acquire would return for the path, except if another
  // process listens on it. Changes nothing. Also returns an error if the server
  // may not make files in the folder of the path.
  static absl::Status Check(const std::string& path, absl::string_view option);

  UnixSocketGuard(UnixSocketGuard&& other) noexcept;
  UnixSocketGuard& operator=(UnixSocketGuard&&) = delete;
  ~UnixSocketGuard();

 private:
  UnixSocketGuard(std::string path, int lock_fd)
      : path_(std::move(path)), lock_fd_(lock_fd) {}

  std::string path_;
  int lock_fd_;
};

// The mode of a socket that only the server's own user and root can use.
inline constexpr mode_t kOwnersSocketMode = 0600;

// Returns a non-blocking socket of `type` (SOCK_STREAM or SOCK_SEQPACKET) that
// listens on `path`. The caller must hold the UnixSocketGuard of the path. The
// file gets the permissions `mode` before clients can connect, whatever the
// umask. Error messages begin with `option`, the name of the option that has
// the path.
absl::StatusOr<UniqueFd> ListenOnUnixSocket(const std::string& path, int type,
                                            mode_t mode,
                                            absl::string_view option);

// A file that tells scripts where the server listens. The destructor removes
// it, unless another server has replaced it with its own file.
class AddressFile {
 public:
  // Returns the error that Write would return for the path, if that can be
  // known before writing. Call it before the server begins to listen.
  static absl::Status Check(const std::string& path);

  // Writes the file, with one address on each line. Replaces an existing file
  // in one step, so that a reader never sees only some of the addresses.
  // Returns ALREADY_EXISTS if there is something at the path that is neither an
  // empty file nor the address file of a killed server. Does not follow
  // symbolic links.
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
