#include "server/connections/listener.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace attnd::server {
namespace {

constexpr int kSocketFlags = SOCK_CLOEXEC | SOCK_NONBLOCK;

const sockaddr* Generic(const void* address) {
  return static_cast<const sockaddr*>(address);
}

absl::Status CannotListen(const ListenAddress& address, const std::string& why,
                          absl::string_view option) {
  return absl::UnavailableError(
      absl::StrCat(option, ": cannot listen on ", address.Text(), ": ", why));
}

std::string WhyNot(int error) {
  switch (error) {
    case EADDRINUSE:
      return "it is in use";
    case EADDRNOTAVAIL:
      return "it is not an address of this machine";
    default:
      return std::strerror(error);
  }
}

struct FreeAddresses {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};

void SetPort(sockaddr_storage& address, int port) {
  const in_port_t in_order = htons(static_cast<uint16_t>(port));
  if (address.ss_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6&>(address).sin6_port = in_order;
  } else {
    reinterpret_cast<sockaddr_in&>(address).sin_port = in_order;
  }
}

int PortOf(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

// Returns a socket that is bound to `address`, on which nobody can connect yet.
// If it cannot, returns an invalid descriptor and sets `error` to the value of
// errno.
UniqueFd BindTo(const sockaddr_storage& address, socklen_t size,
                bool both_versions, int& error) {
  UniqueFd fd(socket(address.ss_family, SOCK_STREAM | kSocketFlags, 0));
  const int on = 1;
  const int v6_only = both_versions ? 0 : 1;
  const auto fails = [&](int result) {
    if (result == 0) return false;
    error = errno;
    return true;
  };
  if (!fd.valid()) {
    error = errno;
    return {};
  }
  if (fails(setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))) {
    return {};
  }
  if (address.ss_family == AF_INET6 &&
      fails(setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &v6_only,
                       sizeof(v6_only)))) {
    return {};
  }
  if (fails(bind(fd.get(), Generic(&address), size))) return {};
  return fd;
}

// Does the same with a socket that listens.
UniqueFd ListenOn(const sockaddr_storage& address, socklen_t size,
                  bool both_versions, int& error) {
  UniqueFd fd = BindTo(address, size, both_versions, error);
  if (fd.valid() && listen(fd.get(), SOMAXCONN) != 0) {
    error = errno;
    return {};
  }
  return fd;
}

absl::StatusOr<Listener> OpenUnix(const ListenAddress& address, mode_t mode,
                                  absl::string_view option) {
  ATTND_ASSIGN_OR_RETURN(
      UniqueFd fd,
      ListenOnUnixSocket(address.unix_path, SOCK_STREAM, mode, option));
  Listener listener{.address = address, .sockets = {}};
  listener.sockets.push_back(std::move(fd));
  return listener;
}

bool IsLoopback(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address).sin_addr;
    return ntohl(v4.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  if (address.ss_family != AF_INET6) return false;
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&v6) ||
         (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == IN_LOOPBACKNET);
}

using IpAddresses = std::unique_ptr<addrinfo, FreeAddresses>;

// Returns the IP addresses that the host stands for.
absl::StatusOr<IpAddresses> Resolve(const ListenAddress& address,
                                    absl::string_view option) {
  const std::string host(
      absl::StripSuffix(absl::StripPrefix(address.host, "["), "]"));
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int failure = getaddrinfo(host.c_str(), "0", &hints, &found);
  if (failure != 0) return CannotListen(address, gai_strerror(failure), option);
  return IpAddresses(found);
}

sockaddr_storage WithPort(const addrinfo& info, int port) {
  sockaddr_storage address{};
  std::memcpy(&address, info.ai_addr, info.ai_addrlen);
  SetPort(address, port);
  return address;
}

}  // namespace

absl::StatusOr<Listener> Listener::Open(const ListenAddress& address,
                                        mode_t unix_mode,
                                        absl::string_view option) {
  if (address.is_unix()) return OpenUnix(address, unix_mode, option);
  Listener listener{.address = address, .sockets = {}};
  if (address.is_wildcard()) {
    sockaddr_storage any{};
    any.ss_family = AF_INET6;
    SetPort(any, address.port);
    int error = 0;
    UniqueFd fd = ListenOn(any, sizeof(sockaddr_in6), true, error);
    if (fd.valid()) listener.sockets.push_back(std::move(fd));
    if (error == EADDRINUSE) {
      return CannotListen(address, WhyNot(error), option);
    }
    // If this machine has no IPv6, the code below listens on IPv4.
  }
  if (listener.sockets.empty()) {
    ATTND_ASSIGN_OR_RETURN(const IpAddresses found, Resolve(address, option));
    int error = 0;
    for (const addrinfo* each = found.get(); each != nullptr;
         each = each->ai_next) {
      sockaddr_storage one = WithPort(*each, listener.address.port);
      UniqueFd fd = ListenOn(one, each->ai_addrlen, false, error);
      if (error == EADDRINUSE) {
        return CannotListen(address, WhyNot(error), option);
      }
      if (!fd.valid()) continue;
      if (listener.address.port == 0) {
        socklen_t size = sizeof(one);
        getsockname(fd.get(), reinterpret_cast<sockaddr*>(&one), &size);
        listener.address.port = PortOf(one);
      }
      listener.sockets.push_back(std::move(fd));
    }
    if (listener.sockets.empty()) {
      return CannotListen(address, WhyNot(error), option);
    }
  }
  if (listener.address.port == 0) {
    sockaddr_storage bound{};
    socklen_t size = sizeof(bound);
    getsockname(listener.sockets.front().get(),
                reinterpret_cast<sockaddr*>(&bound), &size);
    listener.address.port = PortOf(bound);
  }
  return listener;
}

absl::StatusOr<bool> Listener::CheckTcp(const ListenAddress& address,
                                        absl::string_view option) {
  if (address.is_wildcard()) return false;
  ATTND_ASSIGN_OR_RETURN(const IpAddresses found, Resolve(address, option));
  int error = 0;
  bool can_bind = false;
  bool only_loopback = true;
  for (const addrinfo* each = found.get(); each != nullptr;
       each = each->ai_next) {
    const sockaddr_storage one = WithPort(*each, 0);
    if (!BindTo(one, each->ai_addrlen, false, error).valid()) continue;
    can_bind = true;
    only_loopback = only_loopback && IsLoopback(one);
  }
  if (!can_bind) return CannotListen(address, WhyNot(error), option);
  return only_loopback;
}

bool Listener::IsOnlyLoopback() const {
  return std::all_of(sockets.begin(), sockets.end(), [](const UniqueFd& fd) {
    sockaddr_storage bound{};
    socklen_t size = sizeof(bound);
    return getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &size) ==
               0 &&
           IsLoopback(bound);
  });
}

std::string PeerName(const sockaddr_storage& address) {
  if (address.ss_family == AF_UNIX) return "unix:";
  char text[INET6_ADDRSTRLEN] = {};
  if (address.ss_family == AF_INET6) {
    inet_ntop(AF_INET6,
              &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text,
              sizeof(text));
    return absl::StrCat("ipv6:[", text, "]:", PortOf(address));
  }
  inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr,
            text, sizeof(text));
  return absl::StrCat("ipv4:", text, ":", PortOf(address));
}

}  // namespace attnd::server
