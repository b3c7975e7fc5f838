// Shows the guard what gRPC reads from a socket and writes to it, so that the
// guard can end connections that exceed a limit.
//
// gRPC 1.51 owns a socket once it has it. It bounds too little of what a client
// sends, and has no interface through which attnd could see the bytes. A relay
// in front of gRPC would copy every tensor twice. Therefore attnd defines the
// functions of the C library with which gRPC reads, writes, waits for and
// closes sockets: recvmsg, sendmsg, epoll_ctl and close. The dynamic linker
// prefers a program's own functions to those of a library, as it does for a
// program's own malloc. The functions here call those of the C library, and do
// nothing else for descriptors that FollowSocket does not know. docs/adr/0011
// describes the alternatives.
#ifndef ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_
#define ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_

#include <memory>

#include "absl/status/status.h"
#include "server/connections/connection_guard.h"

namespace attnd::server {

// Shows `guard` what is read from and written to `fd`, the socket of
// `connection`, until the socket is closed. The guard sees what the client
// sends before gRPC does. Returns false if the number `fd` is 2^20 or more,
// which is too large; the caller then has to close the socket. Thread-safe.
bool FollowSocket(int fd, std::shared_ptr<Connection> connection,
                  std::shared_ptr<ConnectionGuard> guard);

// Returns INTERNAL if gRPC would not call the functions of socket_hooks.cc,
// because the program does not export them.
absl::Status CheckSocketHooks();

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_
