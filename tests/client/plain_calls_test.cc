// Tests the calls of the client that do not send tensors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "client/attention_client.h"
#include "tests/client/fake_server.h"

namespace attnd::client {
namespace {

using ::testing::ElementsAre;

class PlainCallsTest : public testing::Test {
 protected:
  FakeHandler handler_;
  FakeServer server_{&handler_};
  AttentionClient client_{{.target = server_.target()}};
};

TEST_F(PlainCallsTest, BenchmarkReportsProgressThenResult) {
  std::vector<std::string> phases;
  const auto result = client_.Benchmark({.num_vectors = 64, .dimensions = 32},
                                        [&](const BenchmarkProgress& progress) {
                                          phases.push_back(progress.phase);
                                          return true;
                                        });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(phases,
              ElementsAre("prepare", "peak", "naive", "flash", "verify"));
  EXPECT_EQ(result->num_queries, 64);
  EXPECT_EQ(result->dimensions, 32);
  EXPECT_EQ(result->speedup, 4);
  EXPECT_EQ(result->repetitions, 3);
  EXPECT_EQ(result->stats.isa, "scalar");
}

TEST_F(PlainCallsTest, BenchmarkStopsWhenItsCallerHasEnough) {
  const auto result = client_.Benchmark(
      {.num_vectors = 64}, [](const BenchmarkProgress&) { return false; });
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
}

// A server can send nothing for as long as a phase takes.
TEST_F(PlainCallsTest, AnotherThreadStopsABenchmark) {
  class SilentHandler final : public FakeHandler {
   public:
    WireReply OnBenchmark(
        const v1::BenchmarkRequest&,
        const std::function<bool(const v1::BenchmarkResponse&)>& write)
        override {
      v1::BenchmarkResponse event;
      event.mutable_progress()->set_phase("naive");
      write(event);
      released_.wait(false);
      return {.code = 1};
    }
    void Release() {
      released_ = true;
      released_.notify_all();
    }

   private:
    std::atomic<bool> released_ = false;
  };
  SilentHandler handler;
  const FakeServer server(&handler);
  int retries = 0;
  const AttentionClient client(
      {.target = server.target(),
       .on_retry = [&retries](const absl::Status&) { ++retries; }});
  std::stop_source stop;
  std::thread other;
  const auto result = client.Benchmark(
      {.num_vectors = 64},
      [&](const BenchmarkProgress&) {
        other = std::thread([&stop] { stop.request_stop(); });
        return true;
      },
      stop.get_token());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(result.status().message(), "the caller stopped the call");
  other.join();
  handler.Release();
  // A call that is stopped before it starts does not run.
  EXPECT_EQ(client.Benchmark({.num_vectors = 64}, nullptr, stop.get_token())
                .status()
                .code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(retries, 0);
}

TEST_F(PlainCallsTest, ABenchmarkThatIsStoppedAfterItsResultKeepsIt) {
  // Reports progress after the result, so that the client knows when it has the
  // result and the call is not over.
  class TalkativeHandler final : public FakeHandler {
   public:
    WireReply OnBenchmark(
        const v1::BenchmarkRequest&,
        const std::function<bool(const v1::BenchmarkResponse&)>& write)
        override {
      v1::BenchmarkResponse event;
      event.mutable_result()->set_num_queries(64);
      write(event);
      event.mutable_progress()->set_phase("verify");
      write(event);
      released_.wait(false);
      return {};
    }
    void Release() {
      released_ = true;
      released_.notify_all();
    }

   private:
    std::atomic<bool> released_ = false;
  };
  TalkativeHandler handler;
  const FakeServer server(&handler);
  const AttentionClient client({.target = server.target()});
  std::stop_source stop;
  const auto result = client.Benchmark(
      {.num_vectors = 64},
      [&stop](const BenchmarkProgress&) {
        stop.request_stop();
        return true;
      },
      stop.get_token());
  handler.Release();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->num_queries, 64);
}

TEST_F(PlainCallsTest, EstimatesAndServerInfoComeThrough) {
  const auto estimate =
      client_.EstimateMemory({.seq_len = 4096, .concurrency = 7});
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->input_bytes, 4096);
  EXPECT_EQ(estimate->peak_bytes, 7);
  EXPECT_TRUE(estimate->fits);
  EXPECT_EQ(estimate->limiting_factor, "message_size");

  const auto info = client_.GetServerInfo();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version, "9.8.7");
  EXPECT_EQ(info->memory_budget_bytes, int64_t{3} << 30);
  EXPECT_THAT(info->features, ElementsAre("stream", "backward"));
}

TEST_F(PlainCallsTest, ChecksHealth) {
  EXPECT_EQ(client_.CheckHealth().value_or(Health::kUnknown), Health::kServing);
  server_.SetServing(false);
  EXPECT_EQ(client_.CheckHealth().value_or(Health::kUnknown),
            Health::kNotServing);
  EXPECT_EQ(client_.CheckHealth("no.such.Service").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace attnd::client
