// Starts and stops a whole server: the compute engine, the memory budget, the
// sockets, gRPC and the health service.
#ifndef ATTND_SERVER_SERVER_H_
#define ATTND_SERVER_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/memory/admission.h"
#include "server/server_config.h"

namespace attnd::server {

// A server that answers clients from Start until Drain or its destructor. Not
// thread-safe, except for Abort, ReloadFiles, usage and connections.
class Server {
 public:
  // Tests the kernels, listens on every address of `config` and serves clients,
  // which can connect as soon as this returns. If an option cannot be followed,
  // for example because a port is in use or another server listens on a unix
  // socket, the error names the option. If a kernel computes wrong results, the
  // error is INTERNAL.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const ServerConfig& config);
  // Cancels the running calls, as Abort and Drain do.
  ~Server();

  // The addresses that clients can connect to, in the order of --listen. Port 0
  // is replaced by the port that the operating system chose.
  const std::vector<std::string>& addresses() const;

  // The address of the admin port in the same form; "" without an admin port.
  const std::string& admin_address() const;

  // Tells clients and load balancers that the server will end: reports
  // NOT_SERVING at once, and goes on to serve all calls and connections, new
  // ones too, for the time of --drain-announce. Returns when that time is over,
  // or when Abort is called. Call Drain next.
  void Announce();
  // Shuts the server down: reports NOT_SERVING, refuses new calls with
  // UNAVAILABLE, gives the running calls the drain timeout to finish, cancels
  // the others, and closes all connections. Blocks until all of that is done. A
  // second call does nothing.
  void Drain();
  // Makes Announce return at once, and Drain cancel the running calls at once,
  // instead of giving them time to finish. It affects those that are running
  // and those that are called later. Thread-safe.
  void Abort();

  // Makes the server read the files of certificates and tokens again now. It
  // also does so by itself, twice a second. Thread-safe.
  void ReloadFiles();

  // The bytes of the memory budget and the slots (of --max-in-flight) that
  // requests hold at this moment. Thread-safe.
  Admission::Usage usage() const;
  // Returns how many clients are connected.
  int64_t connections() const;

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_SERVER_H_
