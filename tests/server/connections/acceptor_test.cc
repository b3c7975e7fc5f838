#include "server/connections/acceptor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <vector>

#include "base/unique_fd.h"
#include "spdlog/spdlog.h"
#include "tests/support/eventually.h"

namespace attnd::server {
namespace {

using ::attnd::testing::Eventually;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

ListenAddress Free() { return *ListenAddress::Parse("127.0.0.1:0"); }

UniqueFd Connect(int port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address),
              sizeof(address)) != 0) {
    return {};
  }
  return fd;
}

// Keeps the accepted connections.
class Served {
 public:
  Acceptor::Callbacks Callbacks() {
    return {.serve =
                [this](int fd, bool /*encrypted*/) {
                  const std::lock_guard lock(mutex_);
                  sockets_.emplace_back(fd);
                },
            .all_accept_changed = [this](bool all) { all_accept_ = all; }};
  }
  void CloseAll() {
    const std::lock_guard lock(mutex_);
    sockets_.clear();
  }
  size_t count() {
    const std::lock_guard lock(mutex_);
    return sockets_.size();
  }
  bool all_accept() const { return all_accept_; }

 private:
  std::mutex mutex_;
  std::vector<UniqueFd> sockets_;
  std::atomic<bool> all_accept_ = true;
};

TEST(ListenerTest, BindsAFreePortAndSaysWhich) {
  const absl::StatusOr<Listener> listener = Listener::Open(Free());
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_GT(listener->address.port, 0);
  const absl::StatusOr<Listener> second = Listener::Open(listener->address);
  EXPECT_THAT(second.status().ToString(), HasSubstr("it is in use"));
}

TEST(ListenerTest, ListensOnEveryAddressOfAName) {
  const absl::StatusOr<Listener> listener =
      Listener::Open(*ListenAddress::Parse("localhost:0"));
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_TRUE(Connect(listener->address.port).valid());
}

TEST(ListenerTest, TakesBothVersionsOnAWildcard) {
  for (const char* host : {"0.0.0.0:0", "[::]:0"}) {
    const absl::StatusOr<Listener> listener =
        Listener::Open(*ListenAddress::Parse(host));
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_TRUE(Connect(listener->address.port).valid()) << host;
  }
}

// What counts is the address of the socket, however the option spells it.
TEST(ListenerTest, KnowsWhetherOnlyThisMachineCanConnect) {
  for (const char* text : {"127.0.0.1:0", "127.1:0", "0x7f000001:0",
                           "127.9.9.9:0", "localhost:0"}) {
    const auto listener = Listener::Open(*ListenAddress::Parse(text));
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_TRUE(listener->IsOnlyLoopback()) << text;
  }
  // Not every system has IPv6.
  for (const char* text :
       {"[::1]:0", "[0:0:0:0:0:0:0:1]:0", "[::ffff:127.0.0.1]:0"}) {
    const auto listener = Listener::Open(*ListenAddress::Parse(text));
    if (!listener.ok()) continue;
    EXPECT_TRUE(listener->IsOnlyLoopback()) << text;
  }
  auto mixed = Listener::Open(Free());
  ASSERT_TRUE(mixed.ok()) << mixed.status();
  for (const char* text : {"0.0.0.0:0", "[::]:0"}) {
    auto listener = Listener::Open(*ListenAddress::Parse(text));
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_FALSE(listener->IsOnlyLoopback()) << text;
    mixed->sockets.push_back(std::move(listener->sockets.front()));
  }
  EXPECT_FALSE(mixed->IsOnlyLoopback());
}

TEST(ListenerTest, SaysWhatIsNoAddressOfThisMachine) {
  for (const char* host : {"203.0.113.7:0", "no-such-host.invalid:0"}) {
    const absl::StatusOr<Listener> listener =
        Listener::Open(*ListenAddress::Parse(host));
    EXPECT_THAT(listener.status().ToString(),
                HasSubstr("--listen: cannot listen on"));
  }
}

class AcceptorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<Listener> listener = Listener::Open(Free());
    ASSERT_TRUE(listener.ok()) << listener.status();
    port_ = listener->address.port;
    std::vector<Listener> listeners;
    listeners.push_back(*std::move(listener));
    acceptor_ = std::make_unique<Acceptor>(std::move(listeners), guard_,
                                           served_.Callbacks());
  }

  int port_ = 0;
  Served served_;
  std::shared_ptr<ConnectionGuard> guard_ =
      ConnectionGuard::Start({.max_connections = 100});
  std::unique_ptr<Acceptor> acceptor_;
};

TEST_F(AcceptorTest, HandsConnectionsOver) {
  const UniqueFd one = Connect(port_);
  const UniqueFd two = Connect(port_);
  EXPECT_TRUE(Eventually([&] { return served_.count() == 2; }));
  EXPECT_EQ(guard_->connections(), 2);
}

TEST_F(AcceptorTest, ForgetsWhatIsClosed) {
  const UniqueFd one = Connect(port_);
  ASSERT_TRUE(Eventually([&] { return served_.count() == 1; }));
  served_.CloseAll();
  EXPECT_EQ(guard_->connections(), 0) << "close tells the guard";
}

// When no descriptors are left, accept fails and connections wait. When there
// are descriptors again, these connections must be accepted without a restart.
TEST_F(AcceptorTest, GoesOnAfterDescriptorsHaveRunOut) {
  // Undefined-behaviour sanitizer needs a descriptor when it sees a type of the
  // log for the first time.
  spdlog::error("this test uses up {}: {}, {}", std::string("all descriptors"),
                "as an attack would", milliseconds(0).count());
  const UniqueFd waiting(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{.rlim_cur = 3, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port_));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int connected = connect(
      waiting.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
  const bool deaf = Eventually([&] { return !served_.all_accept(); });
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(connected, 0) << "the kernel takes it";
  EXPECT_TRUE(deaf) << "which health has to tell";
  EXPECT_TRUE(Eventually([&] { return served_.count() == 1; }));
  EXPECT_TRUE(Eventually([&] { return served_.all_accept(); }));
}

TEST(DescriptorLimitTest, IsRaisedToTheHardLimit) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit low{.rlim_cur = 64, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_GT(RaiseDescriptorLimit(), 64);
  rlimit after{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, after.rlim_max);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

}  // namespace
}  // namespace attnd::server
