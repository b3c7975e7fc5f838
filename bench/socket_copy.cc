#include "bench/socket_copy.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <system_error>
#include <utility>

namespace attnd::bench {
namespace {

struct Header {
  uint64_t request_bytes = 0;  // the number of bytes that follow
  uint64_t reply_bytes = 0;
};

[[noreturn]] void Fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// Returns false at the end of the stream.
bool ReadAll(int fd, std::span<char> to) {
  while (!to.empty()) {
    const ssize_t got = recv(fd, to.data(), to.size(), 0);
    if (got == 0) return false;
    if (got < 0 && errno != EINTR) Fail("socket_copy: recv");
    if (got > 0) to = to.subspan(static_cast<size_t>(got));
  }
  return true;
}

void WriteAll(int fd, std::span<const char> from) {
  while (!from.empty()) {
    const ssize_t sent = send(fd, from.data(), from.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno != EINTR) Fail("socket_copy: send");
    if (sent > 0) from = from.subspan(static_cast<size_t>(sent));
  }
}

void Serve(const Socket& socket) {
  Header header;
  std::vector<char> buffer;
  const std::span<char> raw(reinterpret_cast<char*>(&header), sizeof(header));
  while (ReadAll(socket.fd(), raw)) {
    const uint64_t size = std::max(header.request_bytes, header.reply_bytes);
    if (buffer.size() < size) buffer.resize(size);
    if (!ReadAll(socket.fd(), {buffer.data(), header.request_bytes})) return;
    WriteAll(socket.fd(), {buffer.data(), header.reply_bytes});
  }
}

void Accept(Socket listener) {
  for (;;) {
    Socket accepted(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    if (accepted.fd() < 0) return;
    const int on = 1;  // this has no effect on a unix socket
    setsockopt(accepted.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    std::thread([socket = std::move(accepted)] {
      try {
        Serve(socket);
      } catch (const std::system_error&) {
        return;  // the client closed the connection during a call
      }
    }).detach();
  }
}

// Calls `use` with the address in the form that the kernel uses.
template <typename Use>
auto WithAddress(const std::string& address, const Use& use) {
  if (address.starts_with("unix:")) {
    sockaddr_un un{.sun_family = AF_UNIX, .sun_path = {}};
    address.substr(5).copy(un.sun_path, sizeof(un.sun_path) - 1);
    return use(reinterpret_cast<sockaddr*>(&un), socklen_t{sizeof(un)});
  }
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  in.sin_port = htons(
      static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  return use(reinterpret_cast<sockaddr*>(&in), socklen_t{sizeof(in)});
}

Socket Open(const std::string& address) {
  const int family = address.starts_with("unix:") ? AF_UNIX : AF_INET;
  Socket socket(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.fd() < 0) Fail("socket_copy: socket");
  return socket;
}

}  // namespace

Socket::Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}
Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

SocketServer::SocketServer(const std::string& unix_path) {
  for (std::string address :
       {std::string("127.0.0.1:0"), "unix:" + unix_path}) {
    Socket listener = Open(address);
    const int bound = WithAddress(address, [&](sockaddr* to, socklen_t size) {
      return bind(listener.fd(), to, size);
    });
    if (bound != 0 || listen(listener.fd(), 16) != 0) {
      Fail("socket_copy: listen");
    }
    if (!address.starts_with("unix:")) {
      sockaddr_in in{};
      socklen_t size = sizeof(in);
      getsockname(listener.fd(), reinterpret_cast<sockaddr*>(&in), &size);
      address = "127.0.0.1:" + std::to_string(ntohs(in.sin_port));
    }
    addresses_.push_back(address);
    std::thread(Accept, std::move(listener)).detach();
  }
}

SocketClient::SocketClient(const std::string& address, int64_t request_bytes,
                           int64_t reply_bytes)
    : socket_(Open(address)),
      request_(sizeof(Header) + static_cast<size_t>(request_bytes), 'x'),
      reply_(static_cast<size_t>(reply_bytes)) {
  const Header header{.request_bytes = static_cast<uint64_t>(request_bytes),
                      .reply_bytes = static_cast<uint64_t>(reply_bytes)};
  std::memcpy(request_.data(), &header, sizeof(header));
  const int connected = WithAddress(address, [&](sockaddr* to, socklen_t size) {
    return connect(socket_.fd(), to, size);
  });
  if (connected != 0) Fail("socket_copy: connect");
  const int on = 1;
  setsockopt(socket_.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

void SocketClient::Call() {
  WriteAll(socket_.fd(), request_);
  if (!ReadAll(socket_.fd(), reply_)) {
    throw std::system_error(ECONNRESET, std::generic_category(), "socket_copy");
  }
}

}  // namespace attnd::bench
