// Bounds what all connections hold together. Only the guard ends connections.
// Knows no gRPC.
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
    // zero: without a limit.
    std::chrono::nanoseconds idle_timeout{0};
    // When the private resident memory is above this, connections are ended,
    // beginning with the one that holds most; 0: memory is not watched.
    int64_t memory_bytes = 0;
    // Returns the memory that is compared with it. Tests replace it.
    std::function<int64_t()> resident_bytes = PrivateResidentBytes;
  };

  // Returns a guard whose thread looks at all connections ten times a second.
  static std::shared_ptr<ConnectionGuard> Start(const Options& options);
  // Ends the thread. Connections stay open, and the guard forgets each of them
  // when it is closed.
  void Stop();
  ~ConnectionGuard();

  // Counts the connected socket `fd` as a connection from now on. If there are
  // max_connections already, ends the one that has been idle longest to make
  // room. Returns null if none is idle; the caller has to close `fd` then.
  std::shared_ptr<Connection> Add(int fd, const std::string& peer);
  // Says that the connection's socket is about to be closed.
  void Forget(const std::shared_ptr<Connection>& connection);

  // How many bytes gRPC may read from the connection's socket now. If that is
  // 0, the guard makes gRPC try again later.
  size_t MayRead(const std::shared_ptr<Connection>& connection);
  // Counts bytes that a client sent. Returns false if the connection was ended;
  // gRPC must not see the bytes then.
  bool Received(Connection& connection, const char* data, size_t size,
                SteadyTime now);

  int64_t connections() const;

  // Memory that only this process has mapped and touched, in bytes. Files, and
  // regions that clients share, do not count. 0 if /proc cannot be read.
  static int64_t PrivateResidentBytes();

 private:
  explicit ConnectionGuard(const Options& options);

  void Watch();
  void EndOverdue(SteadyTime now);
  void KeepMemory(SteadyTime now);
  // Whether gRPC still holds calls of connections that were ended, and these
  // are too many together with the open calls.
  bool Behind() const;
  // Lets the connections that MayRead has held back read again.
  void Resume();
  // Ends the connection for which `held` returns the largest number, unless
  // that is less than `least`. Returns whether it ended one.
  bool EndLargest(const std::function<int64_t(const Connection&)>& held,
                  int64_t least, std::string_view reason);
  void End(Connection& connection, std::string_view reason);
  // Logs which connections were ended since the last report, a line for each
  // reason.
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

  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_CONNECTION_GUARD_H_
