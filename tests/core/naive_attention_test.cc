#include "core/naive_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <span>
#include <vector>

#include "tests/support/attention_case.h"
#include "tests/support/isas.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

using ::attnd::testing::AttentionCase;
using ::attnd::testing::CaseShape;
using ::attnd::testing::RandomShape;
using ::attnd::testing::TypedArray;
using ::testing::Each;
using ::testing::IsEmpty;
using ::testing::IsNan;

// Runs on every instruction set of this machine.
class NaiveAttentionTest : public ::testing::TestWithParam<Isa> {
 protected:
  NaiveAttentionTest() : engine_({.threads = 2, .force_isa = GetParam()}) {}

  RunStats Compute(AttentionCase& c) {
    c.ClearOutputs();
    const absl::StatusOr<RunStats> stats =
        NaiveAttention(engine_, c.problem(), c.buffers());
    EXPECT_TRUE(stats.ok()) << stats.status();
    return stats.value_or(RunStats{});
  }

  AttentionEngine engine_;
};

TEST_P(NaiveAttentionTest, AgreesWithTheOracleOnRandomShapes) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 150; ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomShape(rng, 130), rng());
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(NaiveAttentionTest, AgreesWithTheOracleOnScoresOfTenThousand) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 20; ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomShape(rng, 70);
    shape.options.scale = 1.0F;
    AttentionCase c(shape, rng(), 1e4F);
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(NaiveAttentionTest, SaysWhatRan) {
  AttentionCase c({.batch = 2,
                   .num_kv_heads = 2,
                   .group = 3,
                   .q_len = 40,
                   .kv_len = 50,
                   .head_dim = 8,
                   .v_head_dim = 4},
                  kSeed);
  const RunStats stats = Compute(c);
  EXPECT_EQ(stats.isa, GetParam());
  EXPECT_EQ(stats.kernel, "naive");
  EXPECT_EQ(stats.threads, 2);
  EXPECT_EQ(stats.flops, 2 * (8 + 4) * 2 * 6 * 40 * 50);
  EXPECT_EQ(stats.workspace_bytes, 4 * 2 * 6 * 40 * 50);
  EXPECT_GT(stats.compute_time.count(), 0);
}

TEST_P(NaiveAttentionTest, ComputesEmptyProblems) {
  CaseShape shape{.q_len = 3, .kv_len = 0, .head_dim = 4, .v_head_dim = 5};
  shape.outputs.return_lse = true;
  AttentionCase no_keys(shape, kSeed);
  Compute(no_keys);
  EXPECT_THAT(no_keys.output.floats(), Each(0.0F));
  EXPECT_THAT(no_keys.lse, Each(-kInfinity));
  shape.kv_len = 3;
  shape.q_len = 0;
  AttentionCase no_rows(shape, kSeed);
  Compute(no_rows);
  shape.q_len = 3;
  shape.batch = 0;
  AttentionCase no_batch(shape, kSeed);
  Compute(no_batch);
}

TEST_P(NaiveAttentionTest, FollowsIeeeWhereInputsAreNotFinite) {
  std::mt19937_64 rng(kSeed);
  const float bad[] = {kNan, kInfinity, -kInfinity};
  for (int i = 0; i < 60; ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomShape(rng, 40), rng());
    TypedArray* const tensors[] = {&c.query, &c.key, &c.value};
    const std::span<float> tensor = tensors[rng() % 3]->floats();
    tensor[rng() % tensor.size()] = bad[rng() % 3];
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(NaiveAttentionTest, ARowWithoutAScoreAboveMinusInfinityIsZero) {
  CaseShape shape{.q_len = 1, .kv_len = 37, .head_dim = 1, .v_head_dim = 3};
  shape.outputs.return_lse = true;
  AttentionCase c(shape, kSeed);
  c.query.Set(0, 1);
  c.key.Fill(-kInfinity);
  Compute(c);
  EXPECT_THAT(c.output.floats(), Each(0.0F));
  EXPECT_THAT(c.lse, Each(-kInfinity));
  c.key.Set(36, kNan);
  Compute(c);
  EXPECT_THAT(c.output.floats(), Each(IsNan()));
  EXPECT_THAT(c.lse, Each(IsNan()));
}

TEST_P(NaiveAttentionTest, StopsWhereAsked) {
  AttentionCase c({.q_len = 10, .kv_len = 10}, kSeed);
  StopSignal cancelled;
  cancelled.Cancel();
  EXPECT_EQ(NaiveAttention(engine_, c.problem(), c.buffers(), &cancelled)
                .status()
                .code(),
            absl::StatusCode::kCancelled);
  const StopSignal expired(std::chrono::steady_clock::now());
  EXPECT_EQ(NaiveAttention(engine_, c.problem(), c.buffers(), &expired)
                .status()
                .code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_P(NaiveAttentionTest, RefusesScoresThatNoSystemHolds) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers abort on a block this large";
#else
  const TensorSpec spec{.shape = {int64_t{1} << 27, 1}};
  const auto problem = AttentionProblem::Create(spec, spec, spec, {});
  ASSERT_TRUE(problem.ok()) << problem.status();
  EXPECT_EQ(NaiveAttention(engine_, *problem, {}).status().code(),
            absl::StatusCode::kResourceExhausted);
#endif
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, NaiveAttentionTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

TEST(NaiveScoreBytesTest, CountsTheScoresOfEveryHead) {
  const auto bytes = [](const std::vector<int64_t>& query,
                        const std::vector<int64_t>& key) {
    const auto problem = AttentionProblem::Create(
        {.shape = query}, {.shape = key}, {.shape = key}, {});
    EXPECT_TRUE(problem.ok()) << problem.status();
    return NaiveScoreBytes(*problem);
  };
  EXPECT_EQ(bytes({100, 1}, {10, 1}), 4000);
  EXPECT_EQ(bytes({2, 6, 100, 1}, {2, 3, 10, 1}), 2 * 6 * 4000);
  EXPECT_EQ(bytes({0, 6, 100, 1}, {0, 3, 10, 1}), 0);
  // This is the largest problem that Create accepts.
  EXPECT_EQ(bytes({int64_t{1} << 29, 1}, {int64_t{1} << 29, 1}),
            int64_t{1} << 60);
}

}  // namespace
}  // namespace attnd
