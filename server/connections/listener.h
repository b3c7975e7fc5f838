// Opens the sockets on which the server waits for clients. Does not use gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_LISTENER_H_
#define ATTND_SERVER_CONNECTIONS_LISTENER_H_

#include <sys/socket.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/unique_fd.h"
#include "server/connections/listen_address.h"

namespace attnd::server {

// The listening sockets of one address. A unix path has one socket. A TCP host
// name has one for each IP address that it stands for.
struct Listener {
  ListenAddress address;  // with the chosen port instead of port 0
  std::vector<UniqueFd> sockets;
  bool encrypted = false;  // whether its connections use TLS

  // Binds the sockets and listens. From then on, new connections wait in the
  // operating system's queue. A wildcard (0.0.0.0 or [::]) accepts both IPv6
  // and IPv4. The file of a unix socket gets the permissions `unix_mode`.
  // Returns UNAVAILABLE if a TCP address is in use or does not belong to this
  // machine. Each error begins with `option`, the option that has the address.
  static absl::StatusOr<Listener> Open(const ListenAddress& address,
                                       mode_t unix_mode = kOwnersSocketMode,
                                       absl::string_view option = "--listen");

  // Returns whether only programs of this machine can connect to the TCP
  // address, or the error that Open would return, except if the port is in use
  // or needs more rights. Opens no port.
  static absl::StatusOr<bool> CheckTcp(const ListenAddress& address,
                                       absl::string_view option);

  // Returns whether every socket is bound to a loopback address, so that only
  // programs of this machine can connect. Returns false for a unix socket.
  bool IsOnlyLoopback() const;
};

// Returns the address of a client as gRPC writes it, for example
// "ipv4:127.0.0.1:50000", "ipv6:[::1]:50000" or "unix:".
std::string PeerName(const sockaddr_storage& address);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_LISTENER_H_
