// The unix socket on which clients register memory that they share with the
// server. It stays registered until the client unregisters it or closes the
// connection. docs/shared-memory.md describes the protocol.
#ifndef ATTND_SERVER_SHARED_MEMORY_SHM_SOCKET_H_
#define ATTND_SERVER_SHARED_MEMORY_SHM_SOCKET_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/connections/listen_address.h"
#include "server/shared_memory/shared_region.h"

namespace attnd::server {

// Where the unix socket is, and who may connect to it.
struct ShmSocketOptions {
  std::string path;
  // The permissions of the socket's file. Used only if `allowed_uids` is empty.
  mode_t mode = kOwnersSocketMode;
  // The users whose processes may connect. If the list is empty, `mode`
  // decides.
  std::vector<uid_t> allowed_uids;
};

// Serves clients of the socket in a thread of its own. The destructor ends the
// thread and unregisters every region.
class ShmSocket {
 public:
  // The most connections that one uid can have at the same time.
  static constexpr int kMaxConnections = 64;

  // Returns the error that Listen would return for the path, except if another
  // process listens on it. Changes nothing.
  static absl::Status CheckPath(const std::string& path);

  // Makes the socket and begins to serve. `registry` must outlive it. Errors
  // name the flag --shm-socket.
  static absl::StatusOr<std::unique_ptr<ShmSocket>> Listen(
      const ShmSocketOptions& options, RegionRegistry& registry);
  ~ShmSocket();

 private:
  class Impl;
  explicit ShmSocket(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_SHARED_MEMORY_SHM_SOCKET_H_
