#include "server/connections/acceptor.h"

#include <fcntl.h>
#include <netinet/in.h>  // NOLINT(misc-include-cleaner): IPPROTO_TCP
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <limits>
#include <system_error>
#include <utility>

#include "server/connections/socket_hooks.h"
#include "spdlog/spdlog.h"
#include "wire/grpc/transport_arguments.h"

namespace attnd::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

// How long a listener waits after a failed accept. During that time the
// connections wait in the kernel.
constexpr milliseconds kPause{100};
// How long accept has to fail before the server is reported as not serving.
constexpr seconds kNotServingAfter{1};
// How many connections one listener accepts before the others have a turn.
constexpr int kAcceptsPerTurn = 16;
// The kernel ends a connection whose host has acknowledged nothing for this
// time. gRPC sets the same on connections that it accepts itself.
constexpr unsigned kUserTimeoutMs = 20'000;

// Sets the options that gRPC would set. If an option does not fit the kind of
// socket, the connection works without it.
void SetAcceptedSocketOptions(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUserTimeoutMs,
             sizeof(kUserTimeoutMs));
  SetSocketBuffers(fd);
}

// Whether so few descriptors are left that the rest of the process needs them:
// the admin port, which tells what is wrong, and files that are read again.
bool DescriptorsRunLow(int any_fd) {
  constexpr rlim_t kReserved = 16;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
  // The system gives out the lowest number that is free.
  const UniqueFd next(fcntl(any_fd, F_DUPFD_CLOEXEC, 0));
  if (!next.valid()) return errno == EMFILE;
  return static_cast<rlim_t>(next.get()) >=
         limit.rlim_cur - std::min(kReserved, limit.rlim_cur / 8);
}

}  // namespace

int64_t RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  const rlimit raised{.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
  if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  return static_cast<int64_t>(
      std::min<rlim_t>(limit.rlim_cur, std::numeric_limits<int32_t>::max()));
}

Acceptor::Acceptor(std::vector<Listener> listeners,
                   std::shared_ptr<ConnectionGuard> guard, Callbacks callbacks)
    : listeners_(std::move(listeners)),
      guard_(std::move(guard)),
      callbacks_(std::move(callbacks)),
      stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!stop_.valid()) {
    throw std::system_error(errno, std::generic_category(), "eventfd");
  }
  for (const Listener& listener : listeners_) {
    for (const UniqueFd& socket : listener.sockets) {
      sources_.push_back({.fd = socket.get(),
                          .encrypted = listener.encrypted,
                          .name = listener.address.Text()});
    }
  }
  thread_ = std::thread([this] { Run(); });
}

Acceptor::~Acceptor() {
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void Acceptor::Run() {
  for (;;) {
    const SteadyTime now = std::chrono::steady_clock::now();
    std::vector<pollfd> polled = {
        {.fd = stop_.get(), .events = POLLIN, .revents = 0}};
    bool pauses = false;
    for (const Source& source : sources_) {
      const bool waits = source.retry_at > now;
      pauses |= waits;
      // poll ignores negative descriptors.
      polled.push_back(
          {.fd = waits ? -1 : source.fd, .events = POLLIN, .revents = 0});
    }
    poll(polled.data(), polled.size(),
         pauses ? static_cast<int>(kPause.count()) / 2 : -1);
    if (polled.front().revents != 0) return;
    for (size_t i = 0; i < sources_.size(); ++i) {
      Source& source = sources_[i];
      // After a failure, the acceptor tries the listener even if no connection
      // waits, to find out whether it works again.
      const bool retried = source.failed_at != SteadyTime{} &&
                           source.retry_at <= std::chrono::steady_clock::now();
      if (polled[i + 1].revents != 0 || retried) AcceptFrom(source);
    }
    ReportState();
  }
}

void Acceptor::AcceptFrom(Source& source) {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    if (DescriptorsRunLow(stop_.get())) {
      AcceptFailed(source, EMFILE);
      return;
    }
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    UniqueFd fd(accept4(source.fd, reinterpret_cast<sockaddr*>(&address), &size,
                        SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      // EINTR is not a failure. The other two mean that the client closed its
      // connection before it was accepted.
      const int error = errno;
      if (error == EINTR || error == ECONNABORTED || error == EPROTO) continue;
      if (error != EAGAIN) {
        AcceptFailed(source, error);
        return;
      }
      source.failed_at = {};
      return;
    }
    source.failed_at = {};
    Take(std::move(fd), PeerName(address), source.encrypted);
  }
}

void Acceptor::AcceptFailed(Source& source, int error) {
  const SteadyTime now = std::chrono::steady_clock::now();
  source.retry_at = now + kPause;
  if (source.failed_at == SteadyTime{}) source.failed_at = now;
  if (source.reported_at != SteadyTime{} &&
      now - source.reported_at < minutes(1)) {
    return;
  }
  source.reported_at = now;
  spdlog::error(
      "cannot accept connections on {}: {}; trying again every {} ms (if the "
      "process has too many open files, raise the limit of open files, or "
      "lower --max-connections)",
      source.name, std::strerror(error), kPause.count());
}

void Acceptor::Take(UniqueFd fd, const std::string& peer, bool encrypted) {
  SetAcceptedSocketOptions(fd.get());
  std::shared_ptr<Connection> connection = guard_->Add(fd.get(), peer);
  if (!connection) {
    ++refused_;
    const SteadyTime now = std::chrono::steady_clock::now();
    if (refused_reported_at_ == SteadyTime{} ||
        now - refused_reported_at_ >= minutes(1)) {
      spdlog::warn(
          "closed {} new connection(s), the last one from {}: there are as "
          "many connections as --max-connections allows, and none of them is "
          "idle",
          refused_, peer);
      refused_ = 0;
      refused_reported_at_ = now;
    }
    return;
  }
  if (!FollowSocket(fd.get(), connection, guard_, encrypted)) {
    guard_->Forget(connection);
    return;
  }
  callbacks_.serve(fd.release(), encrypted);
}

void Acceptor::ReportState() {
  const SteadyTime now = std::chrono::steady_clock::now();
  const bool all_accept =
      std::none_of(sources_.begin(), sources_.end(), [&](const Source& source) {
        return source.failed_at != SteadyTime{} &&
               now - source.failed_at >= kNotServingAfter;
      });
  if (all_accept == all_accept_) return;
  all_accept_ = all_accept;
  if (all_accept) spdlog::info("all listeners accept connections again");
  callbacks_.all_accept_changed(all_accept);
}

}  // namespace attnd::server
