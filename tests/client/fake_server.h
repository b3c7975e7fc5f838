// Runs a gRPC server on a real socket and passes each call to a FakeHandler.
// Only its small source file includes gRPC (see cmake/attnd_target.cmake).
#ifndef ATTND_TESTS_CLIENT_FAKE_SERVER_H_
#define ATTND_TESTS_CLIENT_FAKE_SERVER_H_

#include <memory>
#include <optional>
#include <string>

#include "tests/client/fake_handler.h"

namespace attnd::client {

// The certificates of a fake server with TLS, as PEM.
struct FakeTls {
  std::string cert;
  std::string key;
  // If set, the server demands a certificate that this authority has signed.
  std::string client_ca = {};
};

class FakeServer {
 public:
  // `handler` must outlive the server. `address` is "127.0.0.1:0", or
  // "unix:PATH" with a path that does not exist yet.
  explicit FakeServer(FakeHandler* handler,
                      const std::string& address = "127.0.0.1:0",
                      const std::optional<FakeTls>& tls = {});
  // Waits for the running calls.
  ~FakeServer();

  // Returns the address for clients, or an empty text if the server cannot
  // listen.
  const std::string& target() const { return target_; }

  // Sets what grpc.health.v1 answers. At first it is SERVING.
  void SetServing(bool serving);

 private:
  class Impl;
  std::string target_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_FAKE_SERVER_H_
