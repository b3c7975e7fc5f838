// Accepts connections in a thread of its own, in place of gRPC. After one
// accept has failed, gRPC 1.51 never accepts on that listener again
// (CVE-2023-4785). This acceptor pauses and tries again. Does not use gRPC.
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

// Accepts the connections of several listeners from its construction to its
// destructor, which closes the listeners. Its thread calls the callbacks.
class Acceptor {
 public:
  struct Callbacks {
    // Receives each new connection, and owns its socket `fd` from then on. The
    // socket does not block, and FollowSocket already shows it to the guard.
    std::function<void(int fd)> serve;
    // Receives false when a listener has failed to accept for a second, and
    // true when all listeners accept again. They are taken to accept at first.
    std::function<void(bool)> all_accept_changed;
  };

  // Asks `guard` for a place for each connection. Throws std::system_error if
  // the system has no descriptor or no thread left.
  Acceptor(std::vector<Listener> listeners,
           std::shared_ptr<ConnectionGuard> guard, Callbacks callbacks);
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

 private:
  // One socket of a listener.
  struct Source {
    int fd = -1;
    std::string name;          // the address, as --listen gives it
    SteadyTime retry_at{};     // accept is not called before this time
    SteadyTime failed_at{};    // since when accept fails; epoch: it does not
    SteadyTime reported_at{};  // when the log last had the failure
  };

  void Run();
  // Accepts a few of the connections that wait. The others have to wait until
  // the other listeners have had a turn.
  void AcceptFrom(Source& source);
  void AcceptFailed(Source& source, int error);
  void Take(UniqueFd fd, const std::string& peer);
  void ReportState();

  const std::vector<Listener> listeners_;
  const std::shared_ptr<ConnectionGuard> guard_;
  const Callbacks callbacks_;
  std::vector<Source> sources_;
  bool all_accept_ = true;
  SteadyTime refused_reported_at_{};
  int64_t refused_ = 0;  // connections since the last report in the log
  UniqueFd stop_;        // becomes readable when the thread has to end
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_ACCEPTOR_H_
