// Shows a connection's bytes to attnd while gRPC reads and writes the socket.
//
// gRPC 1.51 owns a socket from the moment that it is handed over, bounds too
// little of what a client sends, and has no place where one could look. A relay
// in front of it would copy every tensor twice. So attnd defines the functions
// of the C library by which gRPC reads, writes, awaits and closes sockets:
// recvmsg, sendmsg, epoll_ctl and close. The dynamic linker prefers a program's
// own functions to the library's, as it does for a program's own malloc. They
// call the C library's, and do no more than that for descriptors that are not
// followed. docs/adr/0011 has the alternatives.
#ifndef ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_
#define ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_

#include <memory>

#include "absl/status/status.h"
#include "server/connections/connection_guard.h"

namespace attnd::server {

// Follows what crosses `fd`, the socket of `connection`, until it is closed:
// `guard` learns what the client sends before gRPC does. False where the number
// of `fd` is too large to be followed (2^20); it has to be closed then.
bool FollowSocket(int fd, std::shared_ptr<Connection> connection,
                  std::shared_ptr<ConnectionGuard> guard);

// INTERNAL where gRPC would not call the functions of this file, because the
// program that they are linked into does not export them.
absl::Status CheckSocketHooks();

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_
