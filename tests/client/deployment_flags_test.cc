// Tests the flags of attnctl estimate in client/attnctl/deployment_flags.h.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "client/attnctl/attnctl.h"
#include "client/attnctl/exit_codes.h"
#include "cost/memory_shares.h"
#include "tests/client/fake_server.h"
#include "tests/support/numbers.h"

namespace attnd::attnctl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class DeploymentFlagsTest : public ::testing::Test {
 protected:
  // Runs attnctl estimate, and sets exit_code_, out_ and err_.
  void Estimate(std::vector<std::string> flags) {
    flags.insert(flags.begin(), "estimate");
    std::ostringstream out;
    std::ostringstream err;
    exit_code_ = RunAttnctl(flags, out, err, false);
    out_ = out.str();
    err_ = err.str();
  }

  nlohmann::json EstimateJson(std::vector<std::string> flags,
                              ExitCode expected = kOk) {
    flags.emplace_back("--json");
    Estimate(flags);
    EXPECT_EQ(exit_code_, expected) << err_;
    return nlohmann::json::parse(out_);
  }

  int exit_code_ = -1;
  std::string out_;
  std::string err_;
};

const std::vector<std::string>& LayerFlags() {
  static const auto* const kFlags = new std::vector<std::string>{
      "--offline",        "--seq-len=4096", "--num-q-heads=32",
      "--num-kv-heads=8", "--threads=3",    "--concurrency=2"};
  return *kFlags;
}

std::vector<std::string> LayerFlagsAnd(const std::vector<std::string>& more) {
  std::vector<std::string> flags = LayerFlags();
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

TEST_F(DeploymentFlagsTest, LimitsHoldThePeak) {
  const int64_t peak =
      EstimateJson(LayerFlags()).at("peak_bytes").get<int64_t>();
  const nlohmann::json limits = EstimateJson(LayerFlagsAnd({"--limits"}));
  const auto memory = limits.at("memory_bytes").get<int64_t>();
  EXPECT_EQ(memory % kMiB, 0);
  EXPECT_EQ(limits.at("memory_budget_bytes"),
            ShareMemory({}, memory).budget_bytes);
  EXPECT_GE(limits.at("memory_budget_bytes").get<int64_t>(), peak);
  EXPECT_LT(ShareMemory({}, memory - kMiB).budget_bytes, peak);
  EXPECT_EQ(limits.at("cpus"), 3);
  EXPECT_EQ(limits.at("max_in_flight"), 2);
  EXPECT_EQ(limits.at("max_message_bytes"), 256 * kMiB);
  EXPECT_FALSE(limits.contains("shm_quota_bytes"));
}

TEST_F(DeploymentFlagsTest, LimitsHoldMessagesThatArriveTogether) {
  // The message of one query over many keys is nearly all of what a call holds.
  const std::vector<std::string> flags = {"--offline",      "--q-len=1",
                                          "--kv-len=65536", "--num-q-heads=8",
                                          "--threads=1",    "--concurrency=9"};
  const auto message =
      EstimateJson(flags).at("required_message_bytes").get<int64_t>();
  ASSERT_GT(message, 256 * kMiB);
  std::vector<std::string> limits_flags = flags;
  limits_flags.emplace_back("--limits");
  const nlohmann::json limits = EstimateJson(limits_flags);
  EXPECT_EQ(limits.at("max_message_bytes"), 513 * kMiB);
  const MemoryShares shares =
      ShareMemory({.max_message_bytes = 513 * kMiB},
                  limits.at("memory_bytes").get<int64_t>());
  EXPECT_GE(shares.arriving_bytes, 9 * message * 5 / 4);
  EXPECT_THAT(limits.at("notes").dump(),
              HasSubstr("--max-message-bytes=537919488"));

  // Streams reserve the memory of their chunks, and need no large message.
  limits_flags.emplace_back("--transport=stream");
  const nlohmann::json streamed = EstimateJson(limits_flags);
  EXPECT_EQ(streamed.at("max_message_bytes"), 256 * kMiB);
  EXPECT_LT(streamed.at("memory_bytes"), limits.at("memory_bytes"));
}

TEST_F(DeploymentFlagsTest, LimitsCanBePasted) {
  Estimate(LayerFlagsAnd({"--limits=kubernetes"}));
  const std::string kubernetes = out_;
  EXPECT_THAT(kubernetes, StartsWith("# For 2 calls at once"));
  EXPECT_THAT(kubernetes, HasSubstr("\nenv:\n"
                                    "  - name: ATTND_MAX_IN_FLIGHT\n"
                                    "    value: \"2\"\n"
                                    "  - name: ATTND_MAX_MESSAGE_BYTES\n"
                                    "    value: \"268435456\"\n"
                                    "resources:\n"
                                    "  requests:\n"
                                    "    cpu: \"3\"\n"));
  Estimate(LayerFlagsAnd({"--limits"}));
  EXPECT_EQ(out_, kubernetes);
  Estimate(LayerFlagsAnd({"--limits=compose"}));
  EXPECT_THAT(out_, HasSubstr("\nenvironment:\n"
                              "  ATTND_MAX_IN_FLIGHT: \"2\"\n"
                              "  ATTND_MAX_MESSAGE_BYTES: \"268435456\"\n"
                              "deploy:\n"
                              "  resources:\n"
                              "    limits:\n"
                              "      cpus: \"3\"\n"
                              "      memory: "));
  Estimate(LayerFlagsAnd({"--limits=flags"}));
  EXPECT_THAT(out_, HasSubstr("\n--cpus=3 --memory="));
  EXPECT_THAT(out_, HasSubstr("\n--threads=3 --max-in-flight=2 "
                              "--max-message-bytes=268435456\n"));
}

TEST_F(DeploymentFlagsTest, LimitsSayWhoPaysForRegions) {
  const std::vector<std::string> flags =
      LayerFlagsAnd({"--transport=shared-memory"});
  const nlohmann::json estimate = EstimateJson(flags);
  std::vector<std::string> limits_flags = flags;
  limits_flags.emplace_back("--limits");
  const nlohmann::json limits = EstimateJson(limits_flags);
  EXPECT_EQ(limits.at("memory_bytes"), 256 * kMiB);
  EXPECT_EQ(limits.at("shm_quota_bytes"),
            2 * (estimate.at("input_bytes").get<int64_t>() +
                 estimate.at("output_bytes").get<int64_t>()));
  EXPECT_THAT(limits.at("notes").dump(), HasSubstr("add up to 128.0 MiB"));
}

TEST_F(DeploymentFlagsTest, LimitsThatNoServerHasAreErrors) {
  Estimate({"--offline", "--seq-len=1000000", "--num-q-heads=32", "--limits"});
  EXPECT_EQ(exit_code_, kUsage);
  EXPECT_THAT(out_, IsEmpty());
  EXPECT_THAT(err_, HasSubstr("--limits: the call needs a message of "));
  EXPECT_THAT(err_, HasSubstr("transport stream"));
  Estimate({"--offline", "--seq-len=64", "--limits=nomad"});
  EXPECT_EQ(exit_code_, kUsage);
  EXPECT_THAT(err_, HasSubstr("kubernetes"));
}

// A server would refuse each of these calls, although each needs little memory.
TEST_F(DeploymentFlagsTest, AProblemThatIsTooLargeToBeComputedIsAnError) {
  client::FakeHandler handler;
  const client::FakeServer server(&handler);
  for (const std::string& where :
       {std::string("--offline"), "--server=" + server.target()}) {
    const std::vector<std::string> problem = {
        where, "--transport=shared-memory", "--seq-len=1",
        "--batch=144115188075855872"};
    for (const std::vector<std::string>& question :
         {std::vector<std::string>{"--limits"},
          {"--rate=1", "--p99-ms=100", "--gflops=1"},
          {"--rate=1", "--p99-ms=100", "--shm-socket=/no/such/socket"}}) {
      std::vector<std::string> flags = problem;
      flags.insert(flags.end(), question.begin(), question.end());
      Estimate(flags);
      EXPECT_EQ(exit_code_, kUsage);
      EXPECT_THAT(out_, IsEmpty());
      EXPECT_EQ(err_,
                "attnctl: --batch: expected a smaller number, because the "
                "problem is too large to be computed, got "
                "144115188075855872\n");
    }
  }
  Estimate({"--offline", "--seq-len=8", "--limits",
            "--concurrency=9000000000000000000"});
  EXPECT_EQ(exit_code_, kUsage);
  EXPECT_THAT(err_, StartsWith("attnctl: --concurrency: expected a smaller"));
}

TEST_F(DeploymentFlagsTest, ThreadsThatNoServerHasAreAnError) {
  const std::vector<std::string> flags = {"--offline", "--seq-len=64",
                                          "--limits=flags"};
  std::vector<std::string> most = flags;
  most.emplace_back("--threads=4096");
  Estimate(most);
  EXPECT_EQ(exit_code_, kOk) << err_;
  std::vector<std::string> too_many = flags;
  too_many.emplace_back("--threads=4097");
  Estimate(too_many);
  EXPECT_EQ(exit_code_, kUsage);
  EXPECT_THAT(out_, IsEmpty());
  EXPECT_EQ(err_,
            "attnctl: --threads: expected at most 4096, because attnd takes no "
            "more, got 4097\n");
}

// Without --offline and --threads, the server says how many threads it has.
TEST_F(DeploymentFlagsTest, LimitsAskTheServer) {
  client::FakeHandler handler;
  const client::FakeServer server(&handler);
  const nlohmann::json limits =
      EstimateJson({"--seq-len=64", "--limits", "--server=" + server.target()});
  EXPECT_EQ(limits.at("cpus"), 5);
}

std::vector<std::string> RateFlagsAnd(const std::vector<std::string>& more) {
  std::vector<std::string> flags = {"--seq-len=1024", "--num-q-heads=8",
                                    "--threads=4", "--rate=20", "--p99-ms=500"};
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

TEST_F(DeploymentFlagsTest, RateCountsOperationsAndBytes) {
  // 8 heads * 1024 * 1024 pairs * 4 * 128 operations, and 4 tensors of 4 MiB.
  constexpr double kOperationsMs = 8.0 * 1024 * 1024 * 4 * 128 / 100e9 * 1e3;
  constexpr double kBytesMs = 4 * 4.0 * (1 << 20) / 2e9 * 1e3;
  const std::vector<std::string> rates = {"--offline", "--gflops=100",
                                          "--gigabytes-per-second=2"};
  const nlohmann::json plan = EstimateJson(RateFlagsAnd(rates));
  const double call_ms = kOperationsMs + kBytesMs;
  EXPECT_NEAR(plan.at("call_alone_ms"), call_ms, 1e-9);
  EXPECT_NEAR(plan.at("saturation_rate"), 1e3 / call_ms, 1e-9);
  EXPECT_EQ(plan.at("pods"), 2);  // one pod would be busy for 103 % of the time
  EXPECT_EQ(plan.at("bound"), "processors");
  EXPECT_EQ(plan.at("processors"), 8);
  EXPECT_NEAR(plan.at("utilization"), 10 * call_ms / 1e3, 1e-9);
  EXPECT_LE(plan.at("p99_ms"), 500);
  EXPECT_THAT(plan.at("source"), HasSubstr("--gflops: 100 GFLOP/s"));

  // The limits of a pod are those for the calls that it holds at once.
  const auto concurrency = plan.at("concurrency").get<int64_t>();
  EXPECT_GT(concurrency, 1);
  EXPECT_EQ(plan.at("limits"),
            EstimateJson({"--offline", "--seq-len=1024", "--num-q-heads=8",
                          "--threads=4", "--limits",
                          "--concurrency=" + std::to_string(concurrency)}));

  // Tensors in shared memory are not moved.
  std::vector<std::string> shared = rates;
  shared.emplace_back("--transport=shared-memory");
  EXPECT_NEAR(EstimateJson(RateFlagsAnd(shared)).at("call_alone_ms"),
              kOperationsMs, 1e-9);
}

TEST_F(DeploymentFlagsTest, RateReadsTheFileOfABenchmark) {
  const std::string path = ::testing::TempDir() + "deployment_bench.json";
  const auto write = [&path](const std::string& text) {
    std::ofstream(path) << text;
  };
  const std::string good =
      R"({"gflops": 50, "dtype": "f32", "stats": {"threads": 4}})";
  write(good);
  const nlohmann::json plan =
      EstimateJson(RateFlagsAnd({"--offline", "--bench=" + path}));
  EXPECT_THAT(plan.at("source"), HasSubstr("--bench: 50 GFLOP/s"));
  EXPECT_THAT(plan.at("source"), HasSubstr("1 GB/s (assumed"));
  for (const char* wrong :
       {"", "[1]", "{}", R"({"gflops": "many"})", R"({"gflops": 0})",
        R"({"gflops": 5)", R"({"gflops": 5, "dtype": "f32"})",
        R"({"gflops": 5, "stats": {"threads": 4}})"}) {
    write(wrong);
    Estimate(RateFlagsAnd({"--offline", "--bench=" + path}));
    EXPECT_EQ(exit_code_, kFileError) << wrong;
    EXPECT_THAT(err_, HasSubstr("--bench=" + path + ": expected the output"));
  }

  // The rate is that of a type and of a number of threads.
  write(good);
  Estimate(RateFlagsAnd({"--offline", "--bench=" + path, "--dtype=bf16"}));
  EXPECT_EQ(exit_code_, kUsage);
  EXPECT_EQ(err_, "attnctl: --bench=" + path +
                      ": expected a benchmark with the dtype of the calls, "
                      "bf16, got f32\n");
  const std::vector<std::string> flags = {"--offline", "--seq-len=1024",
                                          "--rate=1", "--p99-ms=500",
                                          "--bench=" + path};
  EXPECT_EQ(EstimateJson(flags).at("processors_per_pod"), 4);
  std::vector<std::string> more_threads = flags;
  more_threads.emplace_back("--threads=8");
  Estimate(more_threads);
  EXPECT_EQ(exit_code_, kUsage);
  EXPECT_EQ(err_,
            "attnctl: --threads: expected 4, the threads of the "
            "benchmark in --bench=" +
                path + ", got 8\n");
}

TEST_F(DeploymentFlagsTest, RateSaysWhenNoNumberOfPodsIsEnough) {
  Estimate(RateFlagsAnd({"--offline", "--gflops=1"}));
  EXPECT_EQ(exit_code_, kNoAnswer);
  EXPECT_THAT(out_, HasSubstr("none: one call alone takes 4.312 s, longer than "
                              "--p99-ms=500"));
  EXPECT_THAT(out_, Not(HasSubstr("memory limit")));
  Estimate(RateFlagsAnd({"--offline", "--gflops=1", "--limits"}));
  EXPECT_EQ(exit_code_, kNoAnswer);
  const nlohmann::json slow =
      EstimateJson(RateFlagsAnd({"--offline", "--gflops=1"}), kNoAnswer);
  EXPECT_EQ(slow.at("pods"), 0);
  EXPECT_EQ(slow.at("bound"), "latency");
  EXPECT_THAT(slow.at("reason"), StartsWith("one call alone takes 4.312 s"));
  EXPECT_FALSE(slow.contains("p99_ms"));

  Estimate(RateFlagsAnd({"--offline", "--gflops=1e-320"}));
  EXPECT_EQ(exit_code_, kNoAnswer);
  EXPECT_THAT(out_, HasSubstr("one call alone takes more than 1e+12 s"));

  const nlohmann::json large =
      EstimateJson({"--offline", "--seq-len=1000000", "--num-q-heads=32",
                    "--rate=1", "--p99-ms=1", "--gflops=1000"},
                   kNoAnswer);
  EXPECT_EQ(large.at("pods"), 0);
  EXPECT_EQ(large.at("bound"), "message_size");
  EXPECT_THAT(large.at("reason"),
              HasSubstr("the limit is 2147483647: use --transport=stream"));

  const nlohmann::json many =
      EstimateJson({"--offline", "--seq-len=1000", "--gflops=1", "--rate=1e300",
                    "--p99-ms=1e9"},
                   kNoAnswer);
  EXPECT_EQ(many.at("pods"), 0);
  EXPECT_EQ(many.at("bound"), "processors");
}

// With --limits, the plan is a comment above what can be pasted.
TEST_F(DeploymentFlagsTest, RateAndLimitsCanBePasted) {
  Estimate(RateFlagsAnd({"--offline", "--gflops=100", "--limits=kubernetes"}));
  EXPECT_EQ(exit_code_, kOk);
  EXPECT_THAT(out_, StartsWith("# pods: 3, bounded by latency\n"));
  EXPECT_THAT(out_, HasSubstr("\n# latency, p99: "));
  EXPECT_THAT(out_, HasSubstr("\nresources:\n"));
}

TEST_F(DeploymentFlagsTest, RateFlagsThatContradictAreErrors) {
  const std::vector<std::vector<std::string>> wrong = {
      {"--offline", "--seq-len=8", "--rate=1"},
      {"--offline", "--seq-len=8", "--p99-ms=1"},
      {"--offline", "--seq-len=8", "--gflops=1"},
      {"--offline", "--seq-len=8", "--bench=file"},
      RateFlagsAnd({"--offline"}),
      RateFlagsAnd({"--offline", "--gflops=0"}),
      RateFlagsAnd({"--offline", "--gflops=inf"}),
      {"--offline", "--seq-len=8", "--gflops=1", "--rate=-1", "--p99-ms=1"},
      {"--offline", "--seq-len=8", "--gflops=1", "--rate=1", "--p99-ms=nan"},
      RateFlagsAnd({"--offline", "--gflops=1", "--bench=file"}),
      RateFlagsAnd({"--offline", "--gflops=1", "--concurrency=2"}),
      RateFlagsAnd({"--offline", "--gflops=1", "--gigabytes-per-second=0"})};
  for (const auto& flags : wrong) {
    Estimate(flags);
    EXPECT_EQ(exit_code_, kUsage) << testing::PrintToString(flags);
    EXPECT_THAT(err_, HasSubstr("--")) << testing::PrintToString(flags);
    EXPECT_THAT(out_, IsEmpty());
  }
}

// Answers one call at a time, and each in 20 ms.
class SlowHandler final : public client::FakeHandler {
 public:
  client::WireReply OnAttention(const client::FakeCall& call,
                                v1::AttentionResponse* response) override {
    const std::lock_guard lock(mutex_);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return FakeHandler::OnAttention(call, response);
  }
  client::WireReply OnMemoryEstimate(
      const v1::MemoryEstimateRequest&,
      v1::MemoryEstimateResponse* response) override {
    response->set_peak_per_request_bytes(1 << 20);
    response->set_required_message_bytes(required_message_bytes_);
    return {};
  }

  std::atomic<int64_t> required_message_bytes_{5000};

 private:
  std::mutex mutex_;
};

TEST_F(DeploymentFlagsTest, RateMeasuresCallsOfTheProblem) {
  SlowHandler handler;
  const client::FakeServer server(&handler);
  const std::string address = "--server=" + server.target();
  const nlohmann::json plan = EstimateJson(
      {address, "--q-len=3", "--kv-len=5", "--num-q-heads=4",
       "--num-kv-heads=2", "--head-dim=8", "--v-head-dim=6", "--dtype=bf16",
       "--layout=bshd", "--mask-shape=3,5", "--rate=1", "--p99-ms=100000"});
  EXPECT_THAT(err_, HasSubstr("measures calls: all callers\n"));
  EXPECT_THAT(plan.at("source"), HasSubstr("by 8 callers"));
  // The handler takes 20 ms or more for each call.
  EXPECT_GE(plan.at("call_alone_ms"), 20);
  EXPECT_LE(plan.at("saturation_rate"), 50);
  EXPECT_EQ(plan.at("processors_per_pod"), 5);
  const std::vector<client::FakeCall> calls = handler.calls();
  ASSERT_GT(calls.size(), 12U);
  for (const client::FakeCall& call : calls) {
    ASSERT_EQ(call.tensors.size(), 3U);
    EXPECT_THAT(call.tensors[0].shape(), ElementsAre(1, 3, 4, 8));
    EXPECT_THAT(call.tensors[1].shape(), ElementsAre(1, 5, 2, 8));
    EXPECT_THAT(call.tensors[2].shape(), ElementsAre(1, 5, 2, 6));
    EXPECT_EQ(call.tensors[0].dtype(), v1::DATA_TYPE_BF16);
    EXPECT_EQ(call.options.mask().data(), std::string(15, '\1'));
  }
  // Where nothing can be measured, nothing is called.
  Estimate(RateFlagsAnd({address, "--transport=shared-memory"}));
  EXPECT_EQ(exit_code_, kUsage);
  EXPECT_THAT(err_, HasSubstr("--shm-socket: expected the socket"));
  handler.required_message_bytes_ = int64_t{2} << 30;
  EXPECT_EQ(EstimateJson(RateFlagsAnd({address}), kNoAnswer).at("bound"),
            "message_size");
  EXPECT_EQ(handler.calls().size(), calls.size());
}

TEST_F(DeploymentFlagsTest, RateReportsCallsThatFail) {
  class AttentionRefuser final : public client::FakeHandler {
   public:
    client::WireReply OnAttention(const client::FakeCall&,
                                  v1::AttentionResponse*) override {
      return {.code = 3, .message = "scale: expected a number"};
    }
  };
  AttentionRefuser handler;
  const client::FakeServer server(&handler);
  Estimate(RateFlagsAnd({"--server=" + server.target()}));
  EXPECT_EQ(exit_code_, kCallFailed);
  EXPECT_THAT(err_, HasSubstr("INVALID_ARGUMENT: scale: expected a number"));
  EXPECT_THAT(out_, IsEmpty());
}

}  // namespace
}  // namespace attnd::attnctl
