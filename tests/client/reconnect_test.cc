// Tests how the client connects while it tries a call.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "tests/client/fake_server.h"

namespace attnd::client {
namespace {

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// Listens, and passes each connection to `serve` in its own thread, which then
// closes the connection.
class Door {
 public:
  explicit Door(std::function<void(int)> serve) : serve_(std::move(serve)) {
    const sockaddr_in any = Loopback(0);
    sockaddr_in bound{};
    socklen_t size = sizeof(bound);
    EXPECT_EQ(bind(listener_, reinterpret_cast<const sockaddr*>(&any), size),
              0);
    EXPECT_EQ(listen(listener_, 100), 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&bound), &size);
    target_ = "127.0.0.1:" + std::to_string(ntohs(bound.sin_port));
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~Door() {
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    for (std::thread& server : servers_) server.join();
    close(listener_);
  }
  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;

  const std::string& target() const { return target_; }
  int connections() const { return connections_; }

 private:
  void Accept() {
    for (;;) {
      const int connection = accept(listener_, nullptr, nullptr);
      if (connection < 0) return;
      ++connections_;
      servers_.emplace_back([this, connection] {
        serve_(connection);
        close(connection);
      });
    }
  }

  const std::function<void(int)> serve_;
  const int listener_ = socket(AF_INET, SOCK_STREAM, 0);
  std::string target_;
  std::atomic<int> connections_ = 0;
  std::vector<std::thread> servers_;
  std::thread acceptor_;
};

// Forwards bytes until one side closes its connection.
void Forward(int from, int to) {
  std::array<char, 4096> bytes;
  for (;;) {
    const ssize_t size = read(from, bytes.data(), bytes.size());
    if (size <= 0) break;
    // The receiver can have closed its connection.
    if (send(to, bytes.data(), static_cast<size_t>(size), MSG_NOSIGNAL) !=
        size) {
      break;
    }
  }
  shutdown(from, SHUT_RDWR);
  shutdown(to, SHUT_RDWR);
}

// The client must connect often enough to find a server that is up only for a
// moment. gRPC by itself would connect four times while this call is tried, and
// wait longer each time.
TEST(ReconnectTest, ConnectsOftenWhileACallIsTried) {
  const Door door([](int) {});
  const AttentionClient client(
      {.target = door.target(), .deadline = absl::Seconds(6)});
  EXPECT_EQ(client.GetServerInfo().status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_GE(door.connections(), 6);
}

TEST(ReconnectTest, AServerMayTakeASecondToAccept) {
  FakeHandler handler;
  const FakeServer server(&handler);
  int port = 0;
  ASSERT_TRUE(absl::SimpleAtoi(
      server.target().substr(server.target().find(':') + 1), &port));
  const Door door([&](int connection) {
    absl::SleepFor(absl::Seconds(1));
    const int behind = socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in address = Loopback(port);
    EXPECT_EQ(connect(behind, reinterpret_cast<const sockaddr*>(&address),
                      sizeof(address)),
              0);
    std::thread back([&] { Forward(behind, connection); });
    Forward(connection, behind);
    back.join();
    close(behind);
  });
  EXPECT_EQ(AttentionClient({.target = door.target()}).GetServerInfo().status(),
            absl::OkStatus());
  EXPECT_EQ(door.connections(), 1);
}

}  // namespace
}  // namespace attnd::client
