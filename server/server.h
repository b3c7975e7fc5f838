// The whole server in one object: engine, budget, sockets, health, and the
// order in which they come up and go down.
#ifndef ATTND_SERVER_SERVER_H_
#define ATTND_SERVER_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/memory/admission.h"
#include "server/server_config.h"

namespace attnd::server {

// Serves from Start until Drain or its destructor.
class Server {
 public:
  // Warms up, binds every address and serves; ready when it returns. Errors
  // say which option is at fault: a busy port, a socket that another server
  // listens on, a wrong kernel.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const ServerConfig& config);
  ~Server();

  // As clients spell them, in the order of --listen, with real ports.
  const std::vector<std::string>& addresses() const;

  // Reports NOT_SERVING, answers new calls UNAVAILABLE, lets what runs finish
  // within the drain timeout, cancels the rest, and stops. Blocks.
  void Drain();
  // Makes a Drain that runs, or comes, cancel at once. Thread-safe.
  void Abort();

  // What requests hold at this moment.
  Admission::Usage usage() const;

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_SERVER_H_
