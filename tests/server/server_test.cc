// Tests over real sockets what a server answers while it starts, serves, drains
// and stops.
#include "server/server.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <future>
#include <random>
#include <string>
#include <string_view>
#include <thread>

#include "base/unique_fd.h"
#include "tests/server/connections/frames.h"
#include "tests/server/life_server.h"
#include "tests/server/message_tools.h"
#include "tests/support/raw_call.h"
#include "tests/support/thread_limit.h"

namespace attnd::server {
namespace {

using ::attnd::testing::RawClient;
using ::attnd::testing::RawOptions;
using ::attnd::testing::RawReply;
using std::chrono::milliseconds;

constexpr int kOk = 0;
constexpr int kCancelled = 1;
constexpr int kInvalidArgument = 3;
constexpr int kDeadlineExceeded = 4;
constexpr int kResourceExhausted = 8;
constexpr int kUnimplemented = 12;
constexpr int kUnavailable = 14;

std::string Good() { return GoodAttention().SerializeAsString(); }

// Returns a small message that takes seconds to compute.
std::string Long(int64_t rows) {
  v1::SelfAttentionRequest request;
  *request.mutable_sequence() = DataTensor({rows, 1}, 1);
  return request.SerializeAsString();
}
constexpr int64_t kEndlessRows = 1 << 20;

// The bytes of grpc.health.v1.HealthCheckRequest and of its response are
// written by hand. Status 1 is SERVING, and 2 is NOT_SERVING.
RawReply Health(RawClient& client, const std::string& service) {
  std::string request = "\x0a";
  request += static_cast<char>(service.size());
  return client.Call("/grpc.health.v1.Health/Check", request + service);
}
constexpr std::string_view Serving() { return "\x08\x01"; }

// Waits until `count` calls hold a slot of the server.
void AwaitInFlight(const Server& server, int64_t count) {
  while (server.usage().in_flight < count) {
    std::this_thread::sleep_for(milliseconds(1));
  }
}
bool BecomesIdle(const Server& server) {
  const auto limit =
      std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (server.usage().reservations > 0) {
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return server.usage().bytes == 0;
}

TEST(ServerTest, ServesOnBothAddressesAndSaysSo) {
  ServerConfig config = TestConfig();
  config.address_file = SocketPath() + ".addresses";
  const auto server = StartServer(config);
  ASSERT_EQ(server->addresses().size(), 2U);
  EXPECT_NE(server->addresses()[0], "127.0.0.1:0");
  std::ifstream file(config.address_file);
  std::string line;
  for (const std::string& address : server->addresses()) {
    ASSERT_TRUE(std::getline(file, line));
    EXPECT_EQ(line, address);
    RawClient client(address);
    const RawReply reply = client.Call(Method("Attention"), Good());
    EXPECT_EQ(reply.code, kOk) << reply.message;
    ASSERT_EQ(reply.responses.size(), 1U);
    v1::AttentionResponse response;
    ASSERT_TRUE(response.ParseFromString(reply.responses[0]));
    EXPECT_EQ(response.output().data().size(), 2U * 4 * 5 * 3 * 4);
    for (const char* service : {"", "attnd.v1.AttentionService"}) {
      EXPECT_EQ(Health(client, service).responses.at(0), Serving());
    }
  }
}

// attnd counts the frames that gRPC reads. It must end the connection of a
// client that opens and resets calls without end, and must serve other clients.
TEST(ServerTest, CutsOffWhoOpensAndResetsCallsWithoutEnd) {
  const auto server = StartServer();
  const std::string& address = server->addresses()[0];
  const UniqueFd client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(
      static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(client.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)),
            0);
  const timeval limit{.tv_sec = 60, .tv_usec = 0};
  setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  std::string bytes = kPreface + Frame(FrameType::kSettings);
  constexpr uint32_t kCalls = 5000;
  for (uint32_t i = 0; i < kCalls; ++i) {
    bytes += Headers(2 * i + 1) + Reset(2 * i + 1);
  }
  send(client.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  std::array<char, 4096> answer{};
  ssize_t size = 0;
  while ((size = recv(client.get(), answer.data(), answer.size(), 0)) > 0) {
  }
  EXPECT_TRUE(size == 0 || errno == ECONNRESET) << "the connection is open";
  RawClient other(address);
  EXPECT_EQ(other.Call(Method("Attention"), Good()).code, kOk);
}

// If gRPC sent without copying, it could send memory that was overwritten in
// the meantime (CVE-2024-11407). Both ends of the connection are in this
// process.
TEST(ServerTest, SendsNothingByZeroCopy) {
  const auto server = StartServer();
  RawClient client(server->addresses()[0]);
  ASSERT_EQ(client.Call(Method("Attention"), Good()).code, kOk);
  int connections = 0;
  for (int fd = 0; fd < 1024; ++fd) {
    sockaddr_storage peer{};
    socklen_t size = sizeof(peer);
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) != 0 ||
        peer.ss_family == AF_UNIX) {
      continue;
    }
    ++connections;
    int zero_copy = -1;
    size = sizeof(zero_copy);
    ASSERT_EQ(getsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &zero_copy, &size), 0);
    EXPECT_EQ(zero_copy, 0);
  }
  EXPECT_GE(connections, 2);
}

TEST(ServerTest, InfoTellsTheLimits) {
  const auto server = StartServer();
  RawClient client(server->addresses()[0]);
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(info.ParseFromString(
      client.Call(Method("GetServerInfo"), "").responses.at(0)));
  EXPECT_FALSE(info.version().empty());
  EXPECT_FALSE(info.isa().empty());
  EXPECT_EQ(info.threads(), 2);
  EXPECT_EQ(info.max_receive_message_bytes(), 256 << 20);
  EXPECT_EQ(info.max_send_message_bytes(), 256 << 20);
  EXPECT_EQ(info.memory_budget_bytes(), 1 << 30);
  EXPECT_EQ(info.max_benchmark_vectors(), 32768);
}

TEST(ServerTest, ABusyPortIsAnError) {
  ServerConfig config = TestConfig();
  config.address_file = SocketPath() + ".addresses";
  const auto first = StartServer(config);
  config.listen = {first->addresses()[0]};
  const auto second = Server::Start(config);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find(first->addresses()[0]),
            std::string::npos);
  // The address file of the first server must stay, because it is still
  // correct.
  EXPECT_EQ(access(config.address_file.c_str(), F_OK), 0);
}

TEST(ServerTest, ABusySocketIsAnErrorAndStaysWithItsServer) {
  const auto first = StartServer();
  ASSERT_FALSE(Server::Start(TestConfig()).ok());
  RawClient client(first->addresses()[1]);
  EXPECT_EQ(client.Call(Method("Attention"), Good()).code, kOk);
}

TEST(ServerTest, ASystemWithoutThreadsIsAnError) {
  const testing::DefaultStackBytes none(testing::DefaultStackBytes::kNone);
  const auto server = Server::Start(TestConfig());
  EXPECT_EQ(server.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(server.status().message().rfind("--threads: ", 0), 0U)
      << server.status();
}

TEST(ServerTest, RemovesItsFilesAtTheEnd) {
  const std::string path = SocketPath();
  ServerConfig config = TestConfig();
  config.address_file = path + ".addresses";
  StartServer(config).reset();
  EXPECT_NE(access(path.c_str(), F_OK), 0);
  EXPECT_NE(access(config.address_file.c_str(), F_OK), 0);
  EXPECT_NE(access((path + ".lock").c_str(), F_OK), 0);
}

TEST(ServerTest, DrainFinishesWhatRunsAndRefusesWhatIsNew) {
  ServerConfig config = TestConfig();
  config.drain_timeout_s = 200;  // with sanitizers, computing is slow
  const auto server = StartServer(config);
  RawClient busy(server->addresses()[0]);
  RawClient other(server->addresses()[1]);
  ASSERT_EQ(Health(other, "").responses.at(0), Serving());
  auto running = std::async(std::launch::async, [&] {
    return busy.Call(Method("SelfAttention"), Long(15'000));
  });
  AwaitInFlight(*server, 1);
  std::thread drain([&] { server->Drain(); });
  while (Health(other, "").responses.at(0) == Serving()) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  const RawReply refused = other.Call(Method("Attention"), Good());
  EXPECT_EQ(refused.code, kUnavailable) << refused.message;
  const RawReply finished = running.get();
  EXPECT_EQ(finished.code, kOk) << finished.message;
  drain.join();
}

TEST(ServerTest, AnnounceServesOnUntilItIsAborted) {
  ServerConfig config = TestConfig();
  config.drain_announce_s = 3600;
  const auto server = StartServer(config);
  RawClient client(server->addresses()[0]);
  std::thread announcement([&] { server->Announce(); });
  while (Health(client, "").responses.at(0) == Serving()) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  for (const std::string& address : server->addresses()) {
    RawClient fresh(address);
    const RawReply served = fresh.Call(Method("Attention"), Good());
    EXPECT_EQ(served.code, kOk) << served.message;
    EXPECT_NE(Health(fresh, "").responses.at(0), Serving());
  }
  server->Abort();
  announcement.join();
}

TEST(ServerTest, AnAbortThatComesFirstLeavesNoAnnouncement) {
  ServerConfig config = TestConfig();
  config.drain_announce_s = 3600;
  const auto server = StartServer(config);
  server->Abort();
  server->Announce();
}

TEST(ServerTest, DrainCancelsWhatTakesTooLong) {
  ServerConfig config = TestConfig();
  config.drain_timeout_s = 0.05;
  const auto server = StartServer(config);
  RawClient client(server->addresses()[0]);
  auto running = std::async(std::launch::async, [&] {
    return client.Call(Method("SelfAttention"), Long(kEndlessRows));
  });
  AwaitInFlight(*server, 1);
  server->Drain();
  EXPECT_NE(running.get().code, kOk);
}

TEST(ServerTest, AbortCutsADrainShort) {
  const auto server = StartServer();
  RawClient client(server->addresses()[0]);
  auto running = std::async(std::launch::async, [&] {
    return client.Call(Method("SelfAttention"), Long(kEndlessRows));
  });
  AwaitInFlight(*server, 1);
  std::thread drain([&] { server->Drain(); });
  server->Abort();
  drain.join();
  EXPECT_NE(running.get().code, kOk);
}

TEST(ServerTest, CancelAndDeadlineFreeTheServer) {
  const auto server = StartServer();
  RawClient client(server->addresses()[0]);
  RawOptions cancelled;
  cancelled.cancel_after = milliseconds(200);
  EXPECT_EQ(
      client.Call(Method("SelfAttention"), Long(kEndlessRows), cancelled).code,
      kCancelled);
  EXPECT_TRUE(BecomesIdle(*server));
  RawOptions late;
  late.timeout = milliseconds(200);
  EXPECT_EQ(client.Call(Method("SelfAttention"), Long(kEndlessRows), late).code,
            kDeadlineExceeded);
  EXPECT_TRUE(BecomesIdle(*server));
}

TEST(ServerTest, WhoHasItsAnswerFindsTheOnlySlotFree) {
  ServerConfig config = TestConfig();
  config.max_in_flight = 1;
  const auto server = StartServer(config);
  RawClient client(server->addresses()[1]);
  for (const int64_t rows :
       {1, 1000}) {  // small enough for the receiving thread, and too large
    for (int i = 0; i < 500; ++i) {
      const RawReply reply = client.Call(Method("SelfAttention"), Long(rows));
      ASSERT_EQ(reply.code, kOk) << i << ": " << reply.message;
    }
  }
}

TEST(ServerTest, BenchmarkStreamsAndMayBeCancelled) {
  const auto server = StartServer();
  RawClient client(server->addresses()[0]);
  v1::BenchmarkRequest request;
  request.set_num_vectors(128);
  const RawReply reply =
      client.Call(Method("Benchmark"), request.SerializeAsString());
  EXPECT_EQ(reply.code, kOk) << reply.message;
  v1::BenchmarkResponse last;
  ASSERT_TRUE(last.ParseFromString(reply.responses.back()));
  EXPECT_TRUE(last.has_result());

  request.set_num_vectors(8192);
  request.set_repetitions(1000);
  RawOptions once;
  once.keep_going = [](const std::string&) { return false; };
  EXPECT_EQ(
      client.Call(Method("Benchmark"), request.SerializeAsString(), once).code,
      kCancelled);
  EXPECT_TRUE(BecomesIdle(*server));
}

TEST(ServerTest, BytesThatDoNotParseAreRefused) {
  const auto server = StartServer();
  RawClient client(server->addresses()[0]);
  for (const char* method :
       {"Attention", "SelfAttention", "CrossAttention", "AttentionBackward",
        "AttentionStream", "Benchmark", "MemoryEstimate", "GetServerInfo"}) {
    const RawReply reply = client.Call(Method(method), "\x0a\x7f");
    EXPECT_EQ(reply.code, kInvalidArgument) << method;
    EXPECT_EQ(ParseRefusal(reply.details).reason, "MALFORMED_MESSAGE");
    EXPECT_EQ(ParseRefusal(reply.details).field, "");
  }
}

// gRPC would decompress such a request before it checks its size.
TEST(ServerTest, CompressedRequestsAreRefusedUnread) {
  const auto server = StartServer();
  RawClient client(server->addresses()[0]);
  RawOptions gzip;
  gzip.gzip = true;
  EXPECT_EQ(client.Call(Method("Attention"), Good(), gzip).code,
            kUnimplemented);
  EXPECT_EQ(client.Call(Method("Attention"), Good()).code, kOk);
}

TEST(ServerTest, MessagesAboveTheLimitAreRefused) {
  ServerConfig config = TestConfig();
  config.max_message_bytes = 1 << 20;
  const auto server = StartServer(config);
  RawClient client(server->addresses()[0]);
  EXPECT_EQ(client.Call(Method("Attention"), std::string(2 << 20, 'x')).code,
            kResourceExhausted);
  EXPECT_EQ(client.Call(Method("Attention"), Good()).code, kOk);
}

TEST(ServerTest, RandomBytesAreNeverTheServersFault) {
  ServerConfig config = TestConfig();
  config.max_benchmark_vectors = 256;  // some random bytes start a benchmark
  const auto server = StartServer(config);
  RawClient client(server->addresses()[0]);
  std::mt19937_64 rng(1);
  const std::string good = Good();
  for (int i = 0; i < 1500; ++i) {
    const char* const methods[] = {
        "Attention", "SelfAttention",  "CrossAttention", "AttentionBackward",
        "Benchmark", "MemoryEstimate", "GetServerInfo",  "AttentionStream"};
    const std::string bytes =
        i % 2 == 0 ? RandomBytes(rng() % 60, rng) : Mutate(good, rng);
    const RawReply reply = client.Call(Method(methods[rng() % 8]), bytes);
    const bool earned = reply.code == kOk || reply.code == kInvalidArgument ||
                        reply.code == kUnimplemented ||
                        reply.code == kResourceExhausted;
    ASSERT_TRUE(earned) << i << ": " << reply.code << " " << reply.message;
    if (reply.code != kOk) {
      EXPECT_FALSE(ParseRefusal(reply.details).reason.empty()) << i;
    }
  }
  EXPECT_EQ(client.Call(Method("Attention"), good).code, kOk);
  EXPECT_TRUE(BecomesIdle(*server));
}

}  // namespace
}  // namespace attnd::server
