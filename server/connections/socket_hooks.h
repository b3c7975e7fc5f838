// Shows a connection's bytes to attnd while gRPC reads and writes the socket.
//
// gRPC 1.51 owns a socket once it has it. It bounds too little of what a client
// sends, and has no interface through which attnd could look. A relay in front
// of gRPC would copy every tensor twice. So attnd defines the functions of the
// C library with which gRPC reads, writes, waits for and closes sockets:
// recvmsg, sendmsg, epoll_ctl and close. The dynamic linker prefers a program's
// own functions to the library's, as it does for a program's own malloc. They
// call the C library's functions, and do nothing else for descriptors that are
// not followed. docs/adr/0011 describes the alternatives.
#ifndef ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_
#define ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_

#include <memory>

#include "absl/status/status.h"
#include "server/connections/connection_guard.h"

namespace attnd::server {

// Shows `guard` what is read from and written to `fd`, the socket of
// `connection`, until it is closed. The guard sees what the client sends before
// gRPC does. Returns false if the number `fd` is too large to be followed (2^20
// or more); the caller has to close it then.
bool FollowSocket(int fd, std::shared_ptr<Connection> connection,
                  std::shared_ptr<ConnectionGuard> guard);

// Returns INTERNAL if gRPC would not call the functions of this file, because
// the program does not export them.
absl::Status CheckSocketHooks();

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_
