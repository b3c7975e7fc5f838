// Starts a server for one test on free addresses.
#ifndef ATTND_TESTS_SERVER_LIFE_SERVER_H_
#define ATTND_TESTS_SERVER_LIFE_SERVER_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "server/server.h"

namespace attnd::server {

inline std::string SocketPath() {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  return ::testing::TempDir() + "attnd_" + std::to_string(getpid()) + "_" +
         test->name();
}

// The server listens on a free TCP port and on a unix socket, in this order. It
// has no admin port.
inline ServerConfig TestConfig() {
  ServerConfig config;
  config.listen = {"127.0.0.1:0", "unix:" + SocketPath()};
  config.admin_listen.clear();
  config.threads = 2;
  config.memory_budget_bytes = 1LL << 30;
  return config;
}

inline std::unique_ptr<Server> StartServer(
    const ServerConfig& config = TestConfig()) {
  auto server = Server::Start(config);
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

inline std::string Method(const std::string& name) {
  return "/attnd.v1.AttentionService/" + name;
}

}  // namespace attnd::server

#endif  // ATTND_TESTS_SERVER_LIFE_SERVER_H_
