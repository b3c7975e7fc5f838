#include "server/shared_memory/shm_socket.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "wire/shm_protocol.h"

namespace attnd::server {
namespace {

// How long the socket accepts no connection after it found no free descriptor
// or no memory for one.
constexpr int kAcceptPauseMs = 100;

// A message and the descriptors that arrived with it, or the reason why there
// is no message.
struct Received {
  enum class State { kMessage, kNothingYet, kEnd };
  State state = State::kEnd;
  std::string bytes;
  std::vector<UniqueFd> descriptors;
  bool descriptors_lost = false;
};

void TakeDescriptors(msghdr& header, std::vector<UniqueFd>& to) {
  for (cmsghdr* control = CMSG_FIRSTHDR(&header); control != nullptr;
       control = CMSG_NXTHDR(&header, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(control) + i * sizeof(int), sizeof(int));
      to.emplace_back(fd);
    }
  }
}

// Receives a message without waiting. An empty message counts as the end of the
// connection, because it looks the same.
Received Receive(int fd) {
  char buffer[kMaxShmRequestBytes + 1];
  iovec part{.iov_base = buffer, .iov_len = sizeof(buffer)};
  // There is space for two descriptors, so that a second one is noticed. The
  // kernel closes those that do not fit.
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))];
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  ssize_t size = 0;
  do {
    size = recvmsg(fd, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (size < 0 && errno == EINTR);
  Received received;
  if (size < 0) {
    if (errno == EAGAIN) received.state = Received::State::kNothingYet;
    return received;
  }
  TakeDescriptors(header, received.descriptors);
  if (size == 0) return received;
  received.state = Received::State::kMessage;
  received.bytes.assign(buffer, static_cast<size_t>(size));
  received.descriptors_lost = (header.msg_flags & MSG_CTRUNC) != 0;
  return received;
}

// Sends `reply` without waiting. Returns false if the peer has not read enough
// for the reply to fit.
bool Send(int fd, const std::string& reply) {
  ssize_t sent = 0;
  do {
    sent = send(fd, reply.data(), reply.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(reply.size());
}

// Sends the last reply. Then reads what the peer has sent, because if a socket
// is closed with unread bytes, the peer reads a reset instead of the reply.
void SendLast(int fd, const std::string& reply) {
  Send(fd, reply);
  shutdown(fd, SHUT_RDWR);
  char ignored = 0;
  while (recv(fd, &ignored, sizeof(ignored), MSG_DONTWAIT) > 0) {
  }
}

}  // namespace

// Everything except the destructor runs in one thread, which never waits for a
// peer.
class ShmSocket::Impl {
 public:
  Impl(UnixSocketGuard guard, UniqueFd listener, UniqueFd stop,
       std::vector<uid_t> allowed_uids, RegionRegistry& registry)
      : guard_(std::move(guard)),
        listener_(std::move(listener)),
        stop_(std::move(stop)),
        allowed_uids_(std::move(allowed_uids)),
        registry_(registry),
        thread_([this] { Run(); }) {}

  ~Impl() {
    eventfd_write(stop_.get(), 1);
    thread_.join();
  }

 private:
  // One client. The destructor unregisters its regions.
  struct Connection {
    Connection(UniqueFd connected, uid_t peer, RegionRegistry& regions)
        : fd(std::move(connected)), uid(peer), registry(regions) {}
    ~Connection() {
      for (const std::string& handle : handles) registry.Unregister(handle);
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    const UniqueFd fd;
    const uid_t uid;
    RegionRegistry& registry;
    std::vector<std::string> handles;
  };

  void Run() {
    for (;;) {
      std::vector<pollfd> polled = {
          {.fd = stop_.get(), .events = POLLIN, .revents = 0},
          // poll ignores a negative descriptor.
          {.fd = may_accept_ ? listener_.get() : -1,
           .events = POLLIN,
           .revents = 0}};
      for (const auto& connection : connections_) {
        polled.push_back(
            {.fd = connection->fd.get(), .events = POLLIN, .revents = 0});
      }
      poll(polled.data(), polled.size(), may_accept_ ? -1 : kAcceptPauseMs);
      may_accept_ = true;
      if (polled[0].revents != 0) break;
      // Serves one message of each client, so that no client starves another.
      for (size_t i = 0; i < connections_.size(); ++i) {
        if (polled[i + 2].revents != 0 && !Serve(*connections_[i])) {
          connections_[i].reset();
        }
      }
      std::erase(connections_, nullptr);
      if (polled[1].revents != 0) Accept();
    }
    connections_.clear();
  }

  void Accept() {
    UniqueFd fd(accept4(listener_.get(), nullptr, nullptr,
                        SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      may_accept_ = errno != EMFILE && errno != ENFILE && errno != ENOBUFS &&
                    errno != ENOMEM;
      return;
    }
    ucred peer{};
    socklen_t size = sizeof(peer);
    if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
      return;
    }
    if (absl::Status status = CheckPeer(peer.uid); !status.ok()) {
      SendLast(fd.get(), EncodeShmError(status));
      return;
    }
    connections_.push_back(
        std::make_unique<Connection>(std::move(fd), peer.uid, registry_));
  }

  absl::Status CheckPeer(uid_t uid) const {
    if (!allowed_uids_.empty() &&
        std::find(allowed_uids_.begin(), allowed_uids_.end(), uid) ==
            allowed_uids_.end()) {
      return absl::PermissionDeniedError(
          absl::StrCat("uid: expected one of --shm-allow-uids (",
                       absl::StrJoin(allowed_uids_, ","), "), got ", uid));
    }
    const auto of_uid =
        std::count_if(connections_.begin(), connections_.end(),
                      [uid](const auto& other) { return other->uid == uid; });
    if (of_uid >= kMaxConnections) {
      return absl::ResourceExhaustedError(
          absl::StrCat("connections: expected at most ", kMaxConnections,
                       " of uid ", uid, ", got one more"));
    }
    return absl::OkStatus();
  }

  // Handles one message. Returns whether the connection continues. It ends if
  // the peer is gone, does not read its replies, or sent anything but a
  // request.
  bool Serve(Connection& connection) {
    Received received = Receive(connection.fd.get());
    if (received.state != Received::State::kMessage) {
      return received.state == Received::State::kNothingYet;
    }
    if (received.descriptors_lost) {
      SendLast(connection.fd.get(),
               EncodeShmError(absl::ResourceExhaustedError(
                   "descriptors: expected at most 1, got more, or the server "
                   "has no free file descriptor")));
      return false;
    }
    const absl::StatusOr<ShmRequest> request =
        ParseShmRequest(received.bytes, received.descriptors.size());
    if (!request.ok()) {
      SendLast(connection.fd.get(), EncodeShmError(request.status()));
      return false;
    }
    switch (request->type) {
      case ShmRequest::Type::kRegister:
        return Register(connection, std::move(received.descriptors.front()));
      case ShmRequest::Type::kUnregister:
        return Unregister(connection, request->handle);
    }
    return false;
  }

  bool Register(Connection& connection, UniqueFd fd) {
    const auto region = registry_.Register(std::move(fd), connection.uid);
    if (!region.ok()) {
      return Send(connection.fd.get(), EncodeShmError(region.status()));
    }
    connection.handles.push_back((*region)->handle());
    return Send(connection.fd.get(),
                EncodeRegistered((*region)->handle(), (*region)->size_bytes()));
  }

  bool Unregister(Connection& connection, const std::string& handle) {
    if (std::erase(connection.handles, handle) == 0) {
      return Send(connection.fd.get(),
                  EncodeShmError(absl::NotFoundError(
                      "handle: expected one that this connection registered, "
                      "got another one")));
    }
    registry_.Unregister(handle);
    return Send(connection.fd.get(), EncodeUnregistered());
  }

  const UnixSocketGuard guard_;
  const UniqueFd listener_;
  const UniqueFd stop_;
  const std::vector<uid_t> allowed_uids_;  // if empty, the file's mode decides
  RegionRegistry& registry_;
  bool may_accept_ = true;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::thread thread_;
};

ShmSocket::ShmSocket(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ShmSocket::~ShmSocket() = default;

absl::Status ShmSocket::CheckPath(const std::string& path) {
  constexpr size_t kMaxPathBytes = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() > kMaxPathBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--shm-socket: expected a path of at most ", kMaxPathBytes,
        " bytes, because sockets allow no more, got ", path.size()));
  }
  return UnixSocketGuard::Check(path, "--shm-socket");
}

absl::StatusOr<std::unique_ptr<ShmSocket>> ShmSocket::Listen(
    const ShmSocketOptions& options, RegionRegistry& registry) {
  ATTND_RETURN_IF_ERROR(CheckPath(options.path));
  std::vector<uid_t> allowed = options.allowed_uids;
  mode_t mode = options.mode;
  if (allowed.empty()) {
    // Only users who may write to the socket's file can connect. If the mode
    // lets only the owner write, the uid is checked, too, in case somebody
    // changes the mode.
    if ((mode & (S_IWGRP | S_IWOTH)) == 0) allowed.push_back(geteuid());
  } else {
    // The mode must let all of these users connect, because the uids decide.
    const bool others = std::any_of(allowed.begin(), allowed.end(),
                                    [](uid_t u) { return u != geteuid(); });
    mode = others ? 0666 : kOwnersSocketMode;
  }
  ATTND_ASSIGN_OR_RETURN(
      UnixSocketGuard guard,
      UnixSocketGuard::Acquire(options.path, "--shm-socket"));
  ATTND_ASSIGN_OR_RETURN(
      UniqueFd listener,
      ListenOnUnixSocket(options.path, SOCK_SEQPACKET, mode, "--shm-socket"));
  UniqueFd stop(eventfd(0, EFD_CLOEXEC));
  if (!stop.valid()) return absl::ErrnoToStatus(errno, "--shm-socket");
  return std::unique_ptr<ShmSocket>(new ShmSocket(
      std::make_unique<Impl>(std::move(guard), std::move(listener),
                             std::move(stop), std::move(allowed), registry)));
}

}  // namespace attnd::server
