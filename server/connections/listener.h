// The sockets on which the server waits for clients. Knows no gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_LISTENER_H_
#define ATTND_SERVER_CONNECTIONS_LISTENER_H_

#include <sys/socket.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/listen_address.h"
#include "server/unique_fd.h"

namespace attnd::server {

// The sockets of one address: one for a unix socket, and one for each address
// that the name of a TCP host stands for.
struct Listener {
  ListenAddress address;  // with the port that was bound
  std::vector<UniqueFd> sockets;

  // Binds and listens; connections wait in the kernel from then on. A wildcard
  // (0.0.0.0 or [::]) takes IPv6 and IPv4 alike. UNAVAILABLE that names
  // --listen where the address is in use or not one of this machine.
  static absl::StatusOr<Listener> Open(const ListenAddress& address);
};

// "ipv4:127.0.0.1:50000", "ipv6:[::1]:50000" or "unix:", as gRPC spells peers.
std::string PeerName(const sockaddr_storage& address);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_LISTENER_H_
