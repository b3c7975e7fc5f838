#include "server/connections/connection_guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <atomic>

#include "base/unique_fd.h"
#include "tests/server/connections/frames.h"
#include "tests/support/eventually.h"

namespace attnd::server {
namespace {

using ::attnd::testing::Eventually;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A client with the connection that the guard has for it.
struct GuardedPeer {
  explicit GuardedPeer(ConnectionGuard& guard) {
    std::array<int, 2> ends{};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()),
              0);
    ours = UniqueFd(ends[0]);
    theirs = UniqueFd(ends[1]);
    connection = guard.Add(ours.get(), "unix:");
  }

  bool Send(ConnectionGuard& guard, const std::string& bytes) const {
    return guard.Received(*connection, bytes.data(), bytes.size(),
                          std::chrono::steady_clock::now());
  }
  bool OpenCalls(ConnectionGuard& guard, uint32_t from, uint32_t count) const {
    std::string bytes;
    for (uint32_t i = 0; i < count; ++i) bytes += Headers(2 * (from + i) + 1);
    return Send(guard, bytes);
  }

  UniqueFd ours;
  UniqueFd theirs;
  std::shared_ptr<Connection> connection;
};

TEST(ConnectionGuardTest, RefusesWhatIsTooManyUnlessAnotherIsIdle) {
  const auto guard = ConnectionGuard::Start({.max_connections = 2});
  const GuardedPeer busy(*guard);
  ASSERT_TRUE(busy.Send(*guard, kPreface));
  ASSERT_TRUE(busy.OpenCalls(*guard, 0, 1));
  const GuardedPeer idle(*guard);
  ASSERT_TRUE(idle.connection);
  EXPECT_EQ(GuardedPeer(*guard).connection, nullptr) << "too new to be idle";
  // When the other connection has been idle for a second, the guard ends it for
  // the new one.
  std::shared_ptr<Connection> late;
  UniqueFd other(socket(AF_UNIX, SOCK_STREAM, 0));
  ASSERT_TRUE(Eventually(
      [&] { return (late = guard->Add(other.get(), "unix:")) != nullptr; }));
  EXPECT_THAT(idle.connection->end_reason(), HasSubstr("--max-connections"));
  EXPECT_THAT(busy.connection->end_reason(), IsEmpty());
  for (const auto& connection : {busy.connection, idle.connection, late}) {
    guard->Forget(connection);
  }
  EXPECT_EQ(guard->connections(), 0);
}

TEST(ConnectionGuardTest, EndsAllAtATime) {
  const auto guard = ConnectionGuard::Start({});
  const GuardedPeer peer(*guard);
  const auto now = std::chrono::steady_clock::now();
  guard->EndAllAt(now + seconds(3600));
  EXPECT_THAT(peer.connection->end_reason(), IsEmpty());
  guard->EndAllAt(now);
  EXPECT_TRUE(
      Eventually([&] { return !peer.connection->end_reason().empty(); }));
  char byte = 0;
  EXPECT_EQ(recv(peer.theirs.get(), &byte, 1, 0), 0) << "the end";
  guard->Forget(peer.connection);
}

TEST(ConnectionGuardTest, CountsConnectionsThatEndInTheirHandshake) {
  const auto guard = ConnectionGuard::Start({});
  const GuardedPeer silent(*guard);
  const GuardedPeer plain(*guard);
  const GuardedPeer encrypted(*guard);
  const GuardedPeer failed(*guard);
  ASSERT_TRUE(plain.Send(*guard, kPreface));
  encrypted.connection->ReceivedEncrypted();
  ASSERT_TRUE(encrypted.Send(*guard, kPreface));
  failed.connection->ReceivedEncrypted();
  for (const GuardedPeer* peer : {&silent, &plain, &encrypted}) {
    guard->Forget(peer->connection);
  }
  EXPECT_EQ(guard->failed_handshakes(), 0);
  guard->Forget(failed.connection);
  EXPECT_EQ(guard->failed_handshakes(), 1);
}

TEST(ConnectionGuardTest, EndsWhoHoldsMostWhenTooManyCallsAreOpen) {
  const auto guard = ConnectionGuard::Start({.all_open_calls = 10});
  const GuardedPeer small(*guard);
  const GuardedPeer large(*guard);
  ASSERT_TRUE(small.Send(*guard, kPreface));
  ASSERT_TRUE(large.Send(*guard, kPreface));
  ASSERT_TRUE(large.OpenCalls(*guard, 0, 8));
  EXPECT_TRUE(small.OpenCalls(*guard, 0, 3));
  EXPECT_THAT(large.connection->end_reason(), HasSubstr("too many calls"));
  EXPECT_THAT(small.connection->end_reason(), IsEmpty());
  guard->Forget(large.connection);
  EXPECT_TRUE(small.OpenCalls(*guard, 3, 7)) << "as many as there may be";
  guard->Forget(small.connection);
}

// The guard must not end the connection that holds the most memory, because
// that one may have reset nothing.
TEST(ConnectionGuardTest, EndsWhoResetMostWhenAllResetTooMuch) {
  const auto guard =
      ConnectionGuard::Start({.all_resets = {.burst = 10, .per_second = 0}});
  const GuardedPeer honest(*guard);
  ASSERT_TRUE(honest.Send(
      *guard, kPreface + Headers(1) +
                  Frame(FrameType::kData, 0, 1, std::string(1 << 20, 'x'))));
  const GuardedPeer attacker(*guard);
  ASSERT_TRUE(attacker.Send(*guard, kPreface));
  std::string bytes;
  for (uint32_t stream = 1; stream < 40; stream += 2) {
    bytes += Headers(stream) + Reset(stream);
  }
  EXPECT_FALSE(attacker.Send(*guard, bytes));
  EXPECT_THAT(honest.connection->end_reason(), IsEmpty());
  guard->Forget(honest.connection);
  guard->Forget(attacker.connection);
}

TEST(ConnectionGuardTest, EndsWhoBringsTheCallsBeforeGrpcSeesThem) {
  const auto guard = ConnectionGuard::Start({.all_open_calls = 10});
  const GuardedPeer peer(*guard);
  ASSERT_TRUE(peer.Send(*guard, kPreface));
  EXPECT_FALSE(peer.OpenCalls(*guard, 0, 11));
  guard->Forget(peer.connection);
}

TEST(ConnectionGuardTest, HoldsOthersBackWhileEndedCallsAreThere) {
  const auto guard = ConnectionGuard::Start({.all_open_calls = 10});
  const GuardedPeer ended(*guard);
  const GuardedPeer busy(*guard);
  const GuardedPeer fresh(*guard);
  const UniqueFd epoll(epoll_create1(0));
  for (const GuardedPeer* peer : {&ended, &busy, &fresh}) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    ASSERT_EQ(epoll_ctl(epoll.get(), EPOLL_CTL_ADD, peer->ours.get(), &event),
              0);
    peer->connection->WatchedBy(epoll.get(), event);
    ASSERT_TRUE(peer->Send(*guard, kPreface));
  }
  ASSERT_TRUE(busy.OpenCalls(*guard, 0, 3));
  EXPECT_EQ(guard->MayRead(busy.connection), Connection::kTurnBytes);
  ASSERT_FALSE(ended.OpenCalls(*guard, 0, 9));
  EXPECT_EQ(guard->MayRead(busy.connection), 0U);
  EXPECT_GT(guard->MayRead(fresh.connection), 200U) << "a health check";
  EXPECT_LE(guard->MayRead(fresh.connection), 1024U);
  // When gRPC has dropped the ended calls, epoll must report again the bytes
  // that wait in the socket.
  ASSERT_EQ(send(busy.theirs.get(), "x", 1, 0), 1);
  std::array<epoll_event, 8> events{};
  while (epoll_wait(epoll.get(), events.data(), events.size(), 0) > 0) {
  }
  guard->Forget(ended.connection);
  EXPECT_EQ(epoll_wait(epoll.get(), events.data(), events.size(), 10'000), 1);
  EXPECT_EQ(guard->MayRead(busy.connection), Connection::kTurnBytes);
  guard->Forget(busy.connection);
  guard->Forget(fresh.connection);
}

TEST(ConnectionGuardTest, LetsOthersHaveATurn) {
  const auto guard = ConnectionGuard::Start({});
  const GuardedPeer peer(*guard);
  const UniqueFd epoll(epoll_create1(0));
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  ASSERT_EQ(epoll_ctl(epoll.get(), EPOLL_CTL_ADD, peer.ours.get(), &event), 0);
  peer.connection->WatchedBy(epoll.get(), event);
  ASSERT_TRUE(peer.Send(*guard, kPreface));
  ASSERT_TRUE(peer.Send(
      *guard, Headers(1) + Frame(FrameType::kData, 0, 1,
                                 std::string(Connection::kTurnBytes, 'x'))));
  ASSERT_EQ(send(peer.theirs.get(), "x", 1, 0), 1);
  std::array<epoll_event, 8> events{};
  while (epoll_wait(epoll.get(), events.data(), events.size(), 0) > 0) {
  }
  // gRPC may have read something just before the first of these, and would then
  // read again at once.
  EXPECT_EQ(guard->MayRead(peer.connection), 0U);
  EXPECT_EQ(guard->MayRead(peer.connection), 0U);
  EXPECT_EQ(epoll_wait(epoll.get(), events.data(), events.size(), 10'000), 1);
  EXPECT_GT(guard->MayRead(peer.connection), 0U);
  guard->Forget(peer.connection);
}

TEST(ConnectionGuardTest, EndsMessagesThatDoNotMove) {
  const auto guard =
      ConnectionGuard::Start({.idle_timeout = milliseconds(200)});
  const GuardedPeer peer(*guard);
  ASSERT_TRUE(peer.Send(*guard, kPreface));
  ASSERT_TRUE(peer.OpenCalls(*guard, 0, 1));
  EXPECT_TRUE(
      Eventually([&] { return !peer.connection->end_reason().empty(); }));
  guard->Forget(peer.connection);
}

TEST(ConnectionGuardTest, EndsWhoHoldsMostWhenMemoryIsUsedUp) {
  std::atomic<int64_t> resident = 0;
  const auto guard =
      ConnectionGuard::Start({.memory_bytes = 1000, .resident_bytes = [&] {
                                return resident.load();
                              }});
  const GuardedPeer small(*guard);
  const GuardedPeer large(*guard);
  for (const GuardedPeer* peer : {&small, &large}) {
    ASSERT_TRUE(peer->Send(*guard, kPreface + Headers(1)));
  }
  ASSERT_TRUE(large.Send(
      *guard, Frame(FrameType::kData, 0, 1, std::string(2 << 20, 'x'))));
  resident = 2000;
  EXPECT_TRUE(
      Eventually([&] { return !large.connection->end_reason().empty(); }));
  EXPECT_THAT(large.connection->end_reason(), HasSubstr("memory"));
  EXPECT_THAT(small.connection->end_reason(), IsEmpty())
      << "it holds too little to matter";
  guard->Stop();
  guard->Forget(small.connection);
  guard->Forget(large.connection);
}

// The guard must not end a connection because of memory that malloc returns
// when it is asked to.
TEST(ConnectionGuardTest, EndsNobodyForWhatMallocKeeps) {
  std::atomic<int> looks = 0;
  const auto guard =
      ConnectionGuard::Start({.memory_bytes = 1000, .resident_bytes = [&] {
                                return ++looks % 2 == 1 ? 2000 : 500;
                              }});
  const GuardedPeer peer(*guard);
  ASSERT_TRUE(peer.Send(
      *guard, kPreface + Headers(1) +
                  Frame(FrameType::kData, 0, 1, std::string(2 << 20, 'x'))));
  EXPECT_TRUE(Eventually([&] { return looks >= 8; }));
  EXPECT_THAT(peer.connection->end_reason(), IsEmpty());
  guard->Stop();
  guard->Forget(peer.connection);
}

TEST(ConnectionGuardTest, MeasuresPrivateMemory) {
  const int64_t before = ConnectionGuard::PrivateResidentBytes();
  ASSERT_GT(before, 0);
  const std::string block(64 << 20, 'x');
  EXPECT_GE(ConnectionGuard::PrivateResidentBytes() - before, 60 << 20)
      << block.back();
}

}  // namespace
}  // namespace attnd::server
