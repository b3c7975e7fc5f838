#include "server/connections/connection_guard.h"

#include <malloc.h>
#include <unistd.h>

#include <fstream>
#include <limits>
#include <utility>
#include <vector>

#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// How often the guard's thread looks at the connections.
constexpr milliseconds kTick{100};
// How long a connection has to be idle before it makes room for a new one.
constexpr seconds kIdleBeforeItMakesRoom{1};
// How much gRPC may read from a connection without calls while it is behind.
// This is enough for a health check, or for a few calls that are only headers.
constexpr size_t kFirstCallBytes = 1024;
// A connection that holds less than this is not the reason why memory is short.
constexpr int64_t kMinOffenceBytes = int64_t{1} << 20;

}  // namespace

int64_t ConnectionGuard::PrivateResidentBytes() {
  int64_t total = 0;
  int64_t resident = 0;
  int64_t shared = 0;
  std::ifstream("/proc/self/statm") >> total >> resident >> shared;
  return (resident - shared) * sysconf(_SC_PAGESIZE);
}

std::shared_ptr<ConnectionGuard> ConnectionGuard::Start(
    const Options& options) {
  std::shared_ptr<ConnectionGuard> guard(new ConnectionGuard(options));
  guard->thread_ = std::thread([raw = guard.get()] { raw->Watch(); });
  return guard;
}

ConnectionGuard::ConnectionGuard(const Options& options)
    : options_(options),
      totals_(std::make_shared<ConnectionTotals>(options.all_resets)) {}

ConnectionGuard::~ConnectionGuard() { Stop(); }

void ConnectionGuard::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  if (!thread_.joinable()) return;
  thread_.join();
  Report();
}

std::shared_ptr<Connection> ConnectionGuard::Add(int fd,
                                                 const std::string& peer) {
  const SteadyTime now = std::chrono::steady_clock::now();
  std::shared_ptr<Connection> idlest;
  auto connection =
      std::make_shared<Connection>(fd, peer, options_.limits, totals_, now);
  {
    const std::lock_guard lock(mutex_);
    if (static_cast<int64_t>(connections_.size()) >= options_.max_connections) {
      SteadyTime since = now - kIdleBeforeItMakesRoom;
      for (const auto& [key, other] : connections_) {
        if (other->idle_since() <= since && other->end_reason().empty()) {
          since = other->idle_since();
          idlest = other;
        }
      }
      if (!idlest) return nullptr;
    }
    connections_.emplace(connection.get(), connection);
  }
  if (idlest) {
    End(*idlest,
        "it was idle, and a new client needed its place "
        "(--max-connections)");
  }
  return connection;
}

void ConnectionGuard::Forget(const std::shared_ptr<Connection>& connection) {
  connection->Closed();
  if (connection->is_in_handshake()) {
    ++failed_handshakes_;
    const std::lock_guard lock(report_mutex_);
    ++handshakes_.count;
    handshakes_.last_peer = connection->peer();
  }
  {
    const std::lock_guard lock(mutex_);
    connections_.erase(connection.get());
  }
  Resume();
}

bool ConnectionGuard::GrpcIsBehind() const {
  const int64_t ending = totals_->ending_calls;
  return ending > 0 && totals_->open_calls + ending > options_.all_open_calls;
}

size_t ConnectionGuard::MayRead(const std::shared_ptr<Connection>& connection) {
  constexpr size_t kAll = std::numeric_limits<size_t>::max();
  if (!connection->can_rearm()) return kAll;
  if (GrpcIsBehind() && connection->end_reason().empty()) {
    if (connection->open_calls() == 0) return kFirstCallBytes;
    if (!connection->paused().exchange(true)) {
      const std::lock_guard lock(mutex_);
      paused_.push_back(connection);
    }
    // gRPC may have caught up in the meantime.
    Resume();
    return 0;
  }
  if (!connection->TurnIsOver()) return Connection::kTurnBytes;
  connection->Rearm();
  return 0;
}

void ConnectionGuard::Resume() {
  if (GrpcIsBehind()) return;
  std::vector<std::shared_ptr<Connection>> paused;
  {
    const std::lock_guard lock(mutex_);
    paused.swap(paused_);
  }
  for (const std::shared_ptr<Connection>& connection : paused) {
    connection->paused() = false;
    connection->Rearm();
  }
}

bool ConnectionGuard::Received(Connection& connection, const char* data,
                               size_t size, SteadyTime now) {
  switch (connection.Received(data, size, now)) {
    case Connection::Verdict::kOk:
      break;
    case Connection::Verdict::kMustEnd:
      End(connection, connection.end_reason());
      return false;
    case Connection::Verdict::kTooManyResets:
      EndLargest(
          [now](const Connection& other) {
            return static_cast<int64_t>(other.RecentResets(now));
          },
          /*min_size=*/1,
          "it had reset the most calls when all connections together had reset "
          "too many");
      break;
  }
  if (totals_->open_calls > options_.all_open_calls) {
    EndLargest([](const Connection& other) { return other.open_calls(); },
               /*min_size=*/1,
               "it had the most open calls when all connections together had "
               "too many calls open");
  }
  return connection.end_reason().empty();
}

bool ConnectionGuard::EndLargest(
    const std::function<int64_t(const Connection&)>& size_of, int64_t min_size,
    std::string_view reason) {
  std::shared_ptr<Connection> largest;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, connection] : connections_) {
      if (!connection->end_reason().empty()) continue;
      const int64_t size = size_of(*connection);
      if (size < min_size) continue;
      min_size = size + 1;
      largest = connection;
    }
  }
  if (!largest) return false;
  End(*largest, reason);
  return true;
}

void ConnectionGuard::End(Connection& connection, std::string_view reason) {
  if (!connection.End(reason)) return;
  const std::lock_guard lock(report_mutex_);
  Ended& ended = ended_[reason];
  ++ended.count;
  ended.last_peer = connection.peer();
}

int64_t ConnectionGuard::connections() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(connections_.size());
}

void ConnectionGuard::Watch() {
  SteadyTime looked_at{};
  SteadyTime reported_at{};
  std::unique_lock lock(mutex_);
  while (!stop_changed_.wait_for(lock, kTick, [&] { return stop_; })) {
    const SteadyTime now = std::chrono::steady_clock::now();
    const bool end_all = now >= end_all_at_;
    lock.unlock();
    if (end_all) EndAll();
    Resume();
    if (options_.memory_bytes > 0) LimitMemory(now);
    if (options_.idle_timeout.count() > 0 &&
        now - looked_at >= options_.idle_timeout / 4) {
      looked_at = now;
      EndOverdue(now);
    }
    if (now - reported_at >= seconds(1)) {
      reported_at = now;
      Report();
    }
    lock.lock();
  }
}

void ConnectionGuard::EndOverdue(SteadyTime now) {
  std::vector<std::pair<std::shared_ptr<Connection>, std::string_view>> overdue;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, connection] : connections_) {
      if (!connection->end_reason().empty()) continue;
      const std::string_view reason =
          connection->Overdue(now, options_.idle_timeout);
      if (!reason.empty()) overdue.emplace_back(connection, reason);
    }
  }
  for (const auto& [connection, reason] : overdue) End(*connection, reason);
}

void ConnectionGuard::EndAllAt(SteadyTime time) {
  const std::lock_guard lock(mutex_);
  end_all_at_ = time;
}

void ConnectionGuard::EndAll() {
  std::vector<std::shared_ptr<Connection>> connections;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, connection] : connections_) {
      connections.push_back(connection);
    }
  }
  for (const std::shared_ptr<Connection>& connection : connections) {
    End(*connection, "it was still open a second after the end of the drain");
  }
}

// malloc keeps much of the freed memory for later messages. That is no reason
// to end a connection, so malloc first gives it back to the system. It has to
// do so each time, because it also keeps what the last ended connection held.
void ConnectionGuard::LimitMemory(SteadyTime now) {
  if (options_.resident_bytes() <= options_.memory_bytes) return;
#ifdef __GLIBC__
  malloc_trim(0);
  if (options_.resident_bytes() <= options_.memory_bytes) return;
#endif
  EndLargest([now](const Connection& other) { return other.HeldBytes(now); },
             kMinOffenceBytes,
             "it held the most memory when the server's memory was used up");
}

void ConnectionGuard::Report() {
  std::unordered_map<std::string_view, Ended> ended;
  Ended handshakes;
  {
    const std::lock_guard lock(report_mutex_);
    ended.swap(ended_);
    std::swap(handshakes, handshakes_);
  }
  // Only information, because whoever can reach the port can cause it.
  if (handshakes.count > 0) {
    spdlog::info("{} TLS handshake(s) failed, the last one with {}",
                 handshakes.count, handshakes.last_peer);
  }
  for (const auto& [reason, who] : ended) {
    spdlog::warn("ended {} connection(s), the last one from {}: {}", who.count,
                 who.last_peer, reason);
  }
}

}  // namespace attnd::server
