// Keeps what all connections together hold within bounds, and is the one place
// that ends connections. Knows no gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_CONNECTION_GUARD_H_
#define ATTND_SERVER_CONNECTIONS_CONNECTION_GUARD_H_

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "server/connections/connection.h"

namespace attnd::server {

// Thread-safe.
class ConnectionGuard : public std::enable_shared_from_this<ConnectionGuard> {
 public:
  struct Options {
    ConnectionLimits limits = {};  // of each connection
    int64_t max_connections = 1024;
    int64_t all_open_calls = 8192;  // of all connections
    Rate all_resets{.burst = 8192, .per_second = 2000};
    // How long a client may leave a message or a block of headers unfinished;
    // zero: as long as it likes.
    std::chrono::nanoseconds idle_timeout{0};
    // Private resident memory above which connections are ended, the one that
    // holds most first; 0: memory is not watched.
    int64_t memory_bytes = 0;
    // Returns the memory that is compared with it; a parameter for tests.
    std::function<int64_t()> resident_bytes = PrivateResidentBytes;
  };

  // Starts a thread that looks at all connections ten times a second.
  static std::shared_ptr<ConnectionGuard> Start(const Options& options);
  // Ends the thread. Connections stay as they are, and are forgotten as they
  // are closed.
  void Stop();
  ~ConnectionGuard();

  // Counts the connected socket `fd` as a connection from now on. Where there
  // are max_connections already, ends the one that has been idle longest to
  // make room; null where none is idle, and the new one has to be closed.
  std::shared_ptr<Connection> Add(int fd, const std::string& peer);
  // The connection's socket is about to be closed.
  void Forget(const std::shared_ptr<Connection>& connection);

  // How many bytes gRPC may read from the connection's socket now. Where that
  // is 0, the guard has gRPC try again when it is time.
  size_t MayRead(const std::shared_ptr<Connection>& connection);
  // Counts bytes that a client sent. False where the connection was ended, so
  // that nobody may act on them.
  bool Received(Connection& connection, const char* data, size_t size,
                SteadyTime now);

  int64_t connections() const;

  // Memory that the process alone has mapped and touched, in bytes: not that of
  // files and of regions that clients share. 0 where /proc does not say.
  static int64_t PrivateResidentBytes();

 private:
  explicit ConnectionGuard(const Options& options);

  void Watch();
  void EndOverdue(SteadyTime now);
  void KeepMemory(SteadyTime now);
  // Whether gRPC still holds calls of connections that were ended, and there
  // would be too many if others began more.
  bool Behind() const;
  // Lets the connections read that MayRead has held back.
  void Resume();
  // Ends the connection for which `held` returns most, unless that is less than
  // `least`.
  bool EndLargest(const std::function<int64_t(const Connection&)>& held,
                  int64_t least, std::string_view reason);
  void End(Connection& connection, std::string_view reason);
  // Writes what was ended since the last time, a line for each reason.
  void Report();

  const Options options_;
  const std::shared_ptr<ConnectionTotals> totals_;

  mutable std::mutex mutex_;
  std::unordered_map<const Connection*, std::shared_ptr<Connection>>
      connections_;
  std::vector<std::shared_ptr<Connection>> paused_;
  std::condition_variable stop_changed_;
  bool stop_ = false;

  struct Ended {
    int64_t count = 0;
    std::string last_peer;
  };
  std::mutex report_mutex_;
  std::unordered_map<std::string_view, Ended> ended_;  // by reason

  SteadyTime trimmed_at_{};
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_CONNECTION_GUARD_H_
