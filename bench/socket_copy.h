// Sends bytes over a plain socket and back, to show how fast the transport is.
#ifndef ATTND_BENCH_SOCKET_COPY_H_
#define ATTND_BENCH_SOCKET_COPY_H_

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace attnd::bench {

// Closes its file descriptor when it is destroyed.
class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;
  ~Socket();
  int fd() const { return fd_; }

 private:
  int fd_;
};

// Accepts on 127.0.0.1 and on a unix socket until its process ends. It is used
// in a process of its own, and its threads are never joined.
class SocketServer {
 public:
  // Throws std::system_error if it cannot listen.
  explicit SocketServer(const std::string& unix_path);

  // Returns "127.0.0.1:PORT" and "unix:PATH".
  const std::vector<std::string>& addresses() const { return addresses_; }

 private:
  std::vector<std::string> addresses_;
};

// Has one connection. It uses the same buffers for all calls.
class SocketClient {
 public:
  // `address` is an address of a SocketServer. Throws std::system_error.
  SocketClient(const std::string& address, int64_t request_bytes,
               int64_t reply_bytes);

  // Sends the request and reads the reply. Throws std::system_error.
  void Call();

 private:
  Socket socket_;
  std::vector<char> request_;  // begins with a header
  std::vector<char> reply_;
};

}  // namespace attnd::bench

#endif  // ATTND_BENCH_SOCKET_COPY_H_
