// Shows ConnectionGuard every byte that gRPC reads from a client's socket or
// writes to it, so that the guard can end connections that exceed a limit.
//
// gRPC 1.51 reads and writes the sockets of connections itself. It limits too
// little of what a client sends, and has no interface through which attnd could
// see the bytes. A relay in front of gRPC would copy every tensor twice.
// Therefore attnd defines the functions of the C library with which gRPC reads,
// writes, waits for and closes sockets: recvmsg, sendmsg, epoll_ctl and close.
// If a connection is encrypted, these show only encrypted bytes, so attnd also
// defines the functions with which gRPC decrypts and encrypts: SSL_read and
// SSL_write of OpenSSL.
// The dynamic linker prefers a program's own functions to those of a library,
// as it does for a program's own malloc. The functions here call those of the C
// library, and do nothing else for descriptors for which FollowSocket has not
// been called. docs/adr/0011 describes the alternatives.
#ifndef ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_
#define ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_

#include <memory>

#include "absl/status/status.h"
#include "server/connections/connection_guard.h"

namespace attnd::server {

// From now on until the socket `fd` of `connection` is closed, shows `guard`
// what is read from it and written to it. The guard sees what the client sends
// before gRPC does. If `encrypted` is true, the guard sees only what a
// TlsHandover makes visible. Returns false if the number `fd` is 2^20 or more,
// because the table of sockets ends there; the caller then has to close the
// socket. Thread-safe.
bool FollowSocket(int fd, std::shared_ptr<Connection> connection,
                  std::shared_ptr<ConnectionGuard> guard,
                  bool encrypted = false);

// While it exists, each SSL object of OpenSSL that this thread creates belongs
// to the socket `fd`, which is followed: the guard of the socket sees what
// passes through the object in plain text. gRPC creates the object for a
// connection while it takes the connection over, in the same thread. Use at
// most one at a time in a thread.
class TlsHandover {
 public:
  explicit TlsHandover(int fd);
  ~TlsHandover();
  TlsHandover(const TlsHandover&) = delete;
  TlsHandover& operator=(const TlsHandover&) = delete;
};

// Returns INTERNAL if gRPC would call the C library's functions instead of
// those of socket_hooks.cc, because the program does not export them.
absl::Status CheckSocketHooks();

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_SOCKET_HOOKS_H_
