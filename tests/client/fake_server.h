// A gRPC server on a real socket that passes each call to a FakeHandler.
// Knows gRPC, so its .cc is thin; see cmake/attnd_target.cmake.
#ifndef ATTND_TESTS_CLIENT_FAKE_SERVER_H_
#define ATTND_TESTS_CLIENT_FAKE_SERVER_H_

#include <memory>
#include <string>

#include "tests/client/fake_handler.h"

namespace attnd::client {

class FakeServer {
 public:
  // `handler` must outlive the server. `address` is "127.0.0.1:0" or a
  // "unix:PATH" that does not exist yet.
  explicit FakeServer(FakeHandler* handler,
                      const std::string& address = "127.0.0.1:0");
  // Waits for calls that are running.
  ~FakeServer();

  // Where clients find it; empty where it could not listen.
  const std::string& target() const { return target_; }

  // What grpc.health.v1 answers; SERVING from the start.
  void SetServing(bool serving);

 private:
  class Impl;
  std::string target_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_FAKE_SERVER_H_
