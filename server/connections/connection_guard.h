// Ends client connections that exceed a limit, so that the connections of all
// clients together cannot use up the server's memory. Does not use gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_CONNECTION_GUARD_H_
#define ATTND_SERVER_CONNECTIONS_CONNECTION_GUARD_H_

#include <atomic>
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

// Knows all client connections of a server. No other class ends them.
// Thread-safe.
class ConnectionGuard : public std::enable_shared_from_this<ConnectionGuard> {
 public:
  struct Options {
    ConnectionLimits limits = {};  // the limits of each connection
    int64_t max_connections = 1024;
    // The limits of all connections together.
    int64_t all_open_calls = 8192;
    Rate all_resets{.burst = 8192, .per_second = 2000};
    // How long a client may leave a message or the headers of a call unfinished
    // (Connection::Overdue). 0 means that there is no limit.
    std::chrono::nanoseconds idle_timeout{0};
    // While the process has more private resident memory than this many bytes,
    // the guard ends connections, beginning with the one that holds most. 0
    // means that it does not watch the memory.
    int64_t memory_bytes = 0;
    // Returns the number of bytes that is compared with memory_bytes. Only
    // tests replace it.
    std::function<int64_t()> resident_bytes = PrivateResidentBytes;
  };

  // Returns a guard whose thread looks at all connections ten times a second.
  static std::shared_ptr<ConnectionGuard> Start(const Options& options);
  // Ends the guard's thread. Connections stay open and registered until they
  // are closed.
  void Stop();
  ~ConnectionGuard();

  // Registers the connected socket `fd` as a connection. If there are
  // max_connections already, first ends the one that has been without calls
  // longest. If none has been without calls for a second, returns null; the
  // caller then has to close `fd`. `peer` is the client's address in the log.
  std::shared_ptr<Connection> Add(int fd, const std::string& peer);
  // Call this before the connection's socket is closed.
  void Forget(const std::shared_ptr<Connection>& connection);

  // Returns how many bytes gRPC may read from the connection's socket now. It
  // is 0 if other connections have to have their turn first, or if gRPC has to
  // drop the calls of ended connections first. The guard then makes gRPC read
  // from the socket again later.
  size_t MayRead(const std::shared_ptr<Connection>& connection);
  // Counts `size` bytes that a client has sent. Returns false if the connection
  // was ended; gRPC must not get the bytes then.
  bool Received(Connection& connection, const char* data, size_t size,
                SteadyTime now);

  // Makes the guard's thread end all connections that are still open at `time`.
  void EndAllAt(SteadyTime time);

  // Returns how many connections there are.
  int64_t connections() const;
  // Returns how many connections were closed in their handshake of TLS
  // (Connection::is_in_handshake).
  int64_t failed_handshakes() const { return failed_handshakes_; }

  // Returns the bytes of memory that this process has used and that no other
  // process shares. Mapped files and the shared memory of clients do not count.
  // Returns 0 if /proc cannot be read.
  static int64_t PrivateResidentBytes();

 private:
  explicit ConnectionGuard(const Options& options);

  void Watch();
  // Ends the connections that Connection::Overdue reports.
  void EndOverdue(SteadyTime now);
  void EndAll();
  // Frees memory, or ends a connection, if memory_bytes is exceeded.
  void LimitMemory(SteadyTime now);
  // Returns whether gRPC has not yet dropped all calls of ended connections,
  // and these and the open calls are together more than all_open_calls.
  bool GrpcIsBehind() const;
  // Lets gRPC read again from the connections for which MayRead has returned 0.
  void Resume();
  // Ends the connection for which `size_of` returns the largest number, unless
  // that number is less than `min_size`. Returns whether a connection was
  // ended.
  bool EndLargest(const std::function<int64_t(const Connection&)>& size_of,
                  int64_t min_size, std::string_view reason);
  void End(Connection& connection, std::string_view reason);
  // Logs how many connections were ended since the last report, one line for
  // each reason, and how many were closed in their handshake.
  void Report();

  const Options options_;
  const std::shared_ptr<ConnectionTotals> totals_;

  mutable std::mutex mutex_;
  std::unordered_map<const Connection*, std::shared_ptr<Connection>>
      connections_;
  std::vector<std::shared_ptr<Connection>> paused_;
  SteadyTime end_all_at_ = SteadyTime::max();
  std::condition_variable stop_changed_;
  bool stop_ = false;

  struct Ended {
    int64_t count = 0;
    std::string last_peer;
  };
  std::mutex report_mutex_;
  // report_mutex_ guards these two.
  std::unordered_map<std::string_view, Ended> ended_;  // by reason
  Ended handshakes_;
  std::atomic<int64_t> failed_handshakes_ = 0;

  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_CONNECTION_GUARD_H_
