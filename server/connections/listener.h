// The sockets on which the server waits for clients. Knows no gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_LISTENER_H_
#define ATTND_SERVER_CONNECTIONS_LISTENER_H_

#include <sys/socket.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "server/connections/listen_address.h"

namespace attnd::server {

// The sockets of one address: one socket for a unix path, and one for each
// address that a TCP host name stands for.
struct Listener {
  ListenAddress address;  // with the port that was bound
  std::vector<UniqueFd> sockets;

  // Binds and listens. From then on, connections wait in the kernel. A wildcard
  // (0.0.0.0 or [::]) accepts both IPv6 and IPv4. The file of a unix socket has
  // `unix_mode`. If a TCP address is in use or is not an address of this
  // machine: UNAVAILABLE. The text of every error names --listen.
  static absl::StatusOr<Listener> Open(const ListenAddress& address,
                                       mode_t unix_mode = kOwnersSocketMode);
};

// "ipv4:127.0.0.1:50000", "ipv6:[::1]:50000" or "unix:", as gRPC spells peers.
std::string PeerName(const sockaddr_storage& address);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_LISTENER_H_
