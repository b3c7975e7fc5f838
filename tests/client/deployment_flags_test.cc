// Tests the flags of attnctl estimate that plan a deployment.
#include "client/attnctl/deployment_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "client/attnctl/attnctl.h"
#include "client/attnctl/exit_codes.h"
#include "cost/memory_shares.h"
#include "tests/client/fake_server.h"
#include "tests/support/numbers.h"

namespace attnd::attnctl {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
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

  nlohmann::json EstimateJson(std::vector<std::string> flags) {
    flags.emplace_back("--json");
    Estimate(flags);
    EXPECT_EQ(exit_code_, kOk) << err_;
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
  EXPECT_THAT(err_, HasSubstr("--transport=stream"));
  Estimate({"--offline", "--seq-len=64", "--limits=nomad"});
  EXPECT_EQ(exit_code_, kUsage);
  EXPECT_THAT(err_, HasSubstr("kubernetes"));
}

// Without --offline and --threads, the server says how many threads it has.
TEST_F(DeploymentFlagsTest, LimitsAskTheServer) {
  client::FakeHandler handler;
  const client::FakeServer server(&handler);
  const nlohmann::json limits =
      EstimateJson({"--seq-len=64", "--limits", "--server=" + server.target()});
  EXPECT_EQ(limits.at("cpus"), 5);
}

}  // namespace
}  // namespace attnd::attnctl
