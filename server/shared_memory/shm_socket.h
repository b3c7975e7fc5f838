// The socket on which clients register memory: who may connect, what they may
// say, and that a region goes when its connection does. docs/shared-memory.md
// has the protocol. Knows no gRPC and no attention.
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
  // Of the socket's file, where `allowed_uids` is empty.
  mode_t mode = kOwnersSocketMode;
  // Whose processes may connect. Empty: those that `mode` lets in.
  std::vector<uid_t> allowed_uids;
};

// Serves in a thread of its own from Listen to the destructor, which
// unregisters every region.
class ShmSocket {
 public:
  // Of one uid at a time.
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
