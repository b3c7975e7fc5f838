// Accepts connections in a thread of its own, in place of gRPC: after accept()
// has failed once on a listening socket, gRPC 1.51 never calls it on that
// socket again (CVE-2023-4785). This class pauses and tries again. Does not use
// gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_ACCEPTOR_H_
#define ATTND_SERVER_CONNECTIONS_ACCEPTOR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "server/connections/connection_guard.h"
#include "server/connections/listener.h"

namespace attnd::server {

// Raises the process's limit of open files to its hard limit, if the system
// allows that. Returns how many files the process may then have open.
int64_t RaiseDescriptorLimit();

// Accepts the connections of several listeners until it is destroyed; the
// destructor closes the listeners. The callbacks run in its thread.
class Acceptor {
 public:
  struct Callbacks {
    // Receives each new connection, and owns its socket `fd` from then on. The
    // socket is non-blocking, and FollowSocket has already been called for it,
    // so the guard sees its traffic. `encrypted` is that of its listener.
    std::function<void(int fd, bool encrypted)> serve;
    // Called with false when a listener has been unable to accept connections
    // for a second, and with true when all listeners can accept again. At the
    // start all are assumed to be able to.
    std::function<void(bool)> all_accept_changed;
  };

  // Registers each connection with `guard`, which may refuse it. Throws
  // std::system_error if the system has no file descriptor or no thread left.
  Acceptor(std::vector<Listener> listeners,
           std::shared_ptr<ConnectionGuard> guard, Callbacks callbacks);
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

 private:
  // One listening socket.
  struct Source {
    int fd = -1;
    bool encrypted = false;    // as in Listener
    std::string name;          // the address, as --listen gives it
    SteadyTime retry_at{};     // accept() is not called before this time
    SteadyTime failed_at{};    // since when accept() fails; epoch: it works
    SteadyTime reported_at{};  // when the failure was last logged
  };

  void Run();
  // Accepts a few of the connections that wait at the listening socket
  // `source`. Those that are left wait until the other listening sockets have
  // had a turn.
  void AcceptFrom(Source& source);
  void AcceptFailed(Source& source, int error);
  void Take(UniqueFd fd, const std::string& peer, bool encrypted);
  void ReportState();

  const std::vector<Listener> listeners_;
  const std::shared_ptr<ConnectionGuard> guard_;
  const Callbacks callbacks_;
  std::vector<Source> sources_;
  bool all_accept_ = true;
  SteadyTime refused_reported_at_{};
  int64_t refused_ = 0;  // refused connections since the last log line
  UniqueFd stop_;        // becomes readable when the thread has to end
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_ACCEPTOR_H_
