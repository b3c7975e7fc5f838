#include "core/attention_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/attention_case.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::AttentionCase;
using ::attnd::testing::CaseShape;
using ::attnd::testing::RandomShape;
using ::testing::IsEmpty;

constexpr uint64_t kSeed = 20261122;

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class AttentionEngineTest : public ::testing::TestWithParam<Isa> {};

TEST_P(AttentionEngineTest, AnswersWithTheForcedSetAndTheEstimatedBytes) {
  AttentionEngine engine({.threads = 2, .force_isa = GetParam()});
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(40); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomShape(rng, 300), rng());
    const auto stats = engine.Run(c.problem(), c.buffers());
    ASSERT_TRUE(stats.ok()) << stats.status();
    ASSERT_THAT(c.Compare(), IsEmpty());
    EXPECT_EQ(stats->isa, GetParam());
    EXPECT_EQ(stats->threads, 2);
    const auto estimate = engine.estimator().Estimate(c.problem());
    ASSERT_TRUE(estimate.ok());
    EXPECT_EQ(stats->workspace_bytes, estimate->workspace_bytes);
    EXPECT_EQ(stats->flops, estimate->flops);
  }
}

// The contract: on one instruction set the same bits for any number of
// threads, any load and any batch neighbours.
TEST_P(AttentionEngineTest, SameBitsForAnyThreadsLoadAndNeighbours) {
  const CaseShape shape = {.num_kv_heads = 2,
                           .group = 2,
                           .q_len = 310,
                           .kv_len = 700,
                           .head_dim = 48,
                           .v_head_dim = 32,
                           .options = {.causal = Causal::kBottomRight}};
  AttentionCase c(shape, kSeed);
  std::vector<float> expected;
  for (const int threads : {1, 2, 3}) {
    AttentionEngine engine({.threads = threads, .force_isa = GetParam()});
    c.ClearOutputs();
    ASSERT_TRUE(engine.Run(c.problem(), c.buffers()).ok());
    if (expected.empty()) expected = c.output;
    EXPECT_TRUE(SameBits(c.output, expected)) << threads << " threads";

    // Under load: other problems share the workers meanwhile.
    std::vector<std::thread> others;
    others.reserve(3);
    for (uint64_t t = 0; t < 3; ++t) {
      others.emplace_back([&engine, t] {
        AttentionCase other(
            {.q_len = 100, .kv_len = 600, .head_dim = 64, .v_head_dim = 64},
            kSeed + t);
        for (int i = 0; i < Affordable(3); ++i) {
          EXPECT_TRUE(engine.Run(other.problem(), other.buffers()).ok());
        }
      });
    }
    for (int i = 0; i < Affordable(3); ++i) {
      c.ClearOutputs();
      ASSERT_TRUE(engine.Run(c.problem(), c.buffers()).ok());
      EXPECT_TRUE(SameBits(c.output, expected)) << threads << " threads";
    }
    for (std::thread& other : others) other.join();
  }

  // The same entry as the second of a batch.
  CaseShape pair = shape;
  pair.batch = 2;
  AttentionCase both(pair, kSeed + 1);
  const auto put = [](const std::vector<float>& from, std::vector<float>& to) {
    std::copy(from.begin(), from.end(),
              to.end() - static_cast<std::ptrdiff_t>(from.size()));
  };
  put(c.query, both.query);
  put(c.key, both.key);
  put(c.value, both.value);
  AttentionEngine engine({.threads = 2, .force_isa = GetParam()});
  ASSERT_TRUE(engine.Run(both.problem(), both.buffers()).ok());
  both.output.erase(
      both.output.begin(),
      both.output.end() - static_cast<std::ptrdiff_t>(expected.size()));
  EXPECT_TRUE(SameBits(both.output, expected));
}

INSTANTIATE_TEST_SUITE_P(PerIsa, AttentionEngineTest,
                         ::testing::ValuesIn(SupportedIsas()),
                         [](const auto& isa) {
                           return std::string(IsaName(isa.param));
                         });

TEST(AttentionEngineStopTest, AnExpiredOrCancelledCallSaysSo) {
  AttentionEngine engine({.threads = 1});
  AttentionCase c({.q_len = 64, .kv_len = 64, .head_dim = 8, .v_head_dim = 8},
                  kSeed);
  const StopSignal expired(std::chrono::steady_clock::now());
  EXPECT_EQ(engine.Run(c.problem(), c.buffers(), &expired).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  StopSignal cancelled;
  cancelled.Cancel();
  EXPECT_EQ(engine.Run(c.problem(), c.buffers(), &cancelled).status().code(),
            absl::StatusCode::kCancelled);
}

TEST(AttentionEngineStopTest, CancellingALongCallReturnsEarly) {
  AttentionEngine engine({.threads = 1});
  // Minutes of work, if it were done.
  AttentionCase c(
      {.q_len = 40000, .kv_len = 40000, .head_dim = 128, .v_head_dim = 128},
      kSeed);
  StopSignal stop(std::chrono::steady_clock::now() +
                  std::chrono::milliseconds(30));
  EXPECT_EQ(engine.Run(c.problem(), c.buffers(), &stop).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace attnd
