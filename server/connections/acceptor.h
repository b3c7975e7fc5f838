// Accepts connections in a thread of its own. gRPC 1.51 gives a listener up for
// ever when one accept fails (CVE-2023-4785); this one pauses and tries again.
// Knows no gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_ACCEPTOR_H_
#define ATTND_SERVER_CONNECTIONS_ACCEPTOR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/connections/connection_guard.h"
#include "server/connections/listener.h"
#include "server/unique_fd.h"

namespace attnd::server {

// Raises the process's limit of open files to its hard limit, and returns what
// the limit is then.
int64_t RaiseDescriptorLimit();

// Serves from its construction to its destructor, which closes the listeners.
class Acceptor {
 public:
  struct Callbacks {
    // Takes a connected socket, non-blocking, that `guard` follows already.
    std::function<void(int fd)> serve;
    // Whether clients can connect to every listener has changed: false once one
    // of them has failed to accept for a second, true when all accept again.
    // True to begin with.
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
    SteadyTime retry_at{};   // not accepted from before that
    SteadyTime failed_at{};  // since when accept fails; epoch: it does not
    SteadyTime reported_at{};
  };

  void Run();
  // Accepts what waits, but no more than a few: other listeners have their
  // turn.
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
  int64_t refused_ = 0;  // since it was reported
  UniqueFd stop_;        // readable when it is time to end
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_ACCEPTOR_H_
