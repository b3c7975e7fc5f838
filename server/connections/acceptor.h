// Accepts connections in a thread of its own. When one accept fails, gRPC 1.51
// never accepts on that listener again (CVE-2023-4785); this acceptor pauses
// and tries again. Knows no gRPC.
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

// Raises the process's limit of open files to its hard limit. Returns the limit
// that is then in force.
int64_t RaiseDescriptorLimit();

// Serves from its construction to its destructor, which closes the listeners.
class Acceptor {
 public:
  struct Callbacks {
    // Serves a connected, non-blocking socket that `guard` follows already.
    // Owns `fd` from then on.
    std::function<void(int fd)> serve;
    // Says whether clients can connect to every listener, when that changes:
    // false once a listener has failed to accept for a second, true when all
    // accept again. It is true at first.
    std::function<void(bool)> all_accept_changed;
  };

  Acceptor(std::vector<Listener> listeners,
           std::shared_ptr<ConnectionGuard> guard, Callbacks callbacks);
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

 private:
  // One socket of a listener.
  struct Source {
    int fd = -1;
    std::string name;        // as --listen has it
    SteadyTime retry_at{};   // no accept before this time
    SteadyTime failed_at{};  // since when accept fails; epoch: it does not
    SteadyTime reported_at{};
  };

  void Run();
  // Accepts a few of the connections that wait, then leaves the other listeners
  // a turn.
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
  int64_t refused_ = 0;  // since they were last reported
  UniqueFd stop_;        // readable when it is time to end
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_ACCEPTOR_H_
