// Keeps one of gRPC's two polling threads idle while few clients are connected.
#ifndef ATTND_SERVER_RPC_IDLE_POLLER_H_
#define ATTND_SERVER_RPC_IDLE_POLLER_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace attnd::server {

// Make one of these in a process that serves, and destroy it before the server
// and before all channels that use callbacks. A second one would stop all
// callbacks of the process.
//
// gRPC 1.51 waits for sockets in half as many threads as there are cores, but
// at least two, and has no option for it. They share all sockets: a thread that
// gets a request first wakes another one to wait in its place, and that one
// then competes for a core with the client and with the workers. With few
// cores, this takes a quarter of the time of a small call. With many clients, a
// second thread is worth more than it costs (docs/adr/0015).
class IdlePoller {
 public:
  // The most connections with which a thread is idle.
  static constexpr int64_t kFewConnections = 4;

  // `connections` returns how many clients are connected. It is called ten
  // times a second, in a thread of this object. On a machine on which gRPC has
  // more than two threads, nothing happens.
  explicit IdlePoller(std::function<int64_t()> connections);
  ~IdlePoller();
  IdlePoller(const IdlePoller&) = delete;
  IdlePoller& operator=(const IdlePoller&) = delete;

  // Returns whether gRPC has exactly two threads here.
  static bool IsUseful();

 private:
  class Held;

  void Watch();

  const std::function<int64_t()> connections_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  std::thread watcher_;  // not started if IsUseful is false
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_RPC_IDLE_POLLER_H_
