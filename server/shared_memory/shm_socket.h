// The socket on which clients register memory. A region is registered until its
// connection ends. docs/shared-memory.md describes the protocol.
#ifndef ATTND_SERVER_SHARED_MEMORY_SHM_SOCKET_H_
#define ATTND_SERVER_SHARED_MEMORY_SHM_SOCKET_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/connections/listen_address.h"
#include "server/shared_memory/shared_region.h"

namespace attnd::server {

struct ShmSocketOptions {
  std::string path;
  // The mode of the socket's file. Used if `allowed_uids` is empty.
  mode_t mode = kOwnersSocketMode;
  // The users whose processes may connect. If empty, `mode` decides.
  std::vector<uid_t> allowed_uids;
};

// Serves clients in a thread of its own, from Listen until the destructor,
// which unregisters every region.
class ShmSocket {
 public:
  // The most connections of one uid at a time.
  static constexpr int kMaxConnections = 64;

  // `registry` must outlive the socket. Errors name --shm-socket.
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
