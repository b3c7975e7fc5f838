#include "core/memory_estimator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "core/backward_plan.h"
#include "tests/support/attention_case.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

using ::attnd::testing::AttentionCase;
using ::attnd::testing::RandomShape;

AttentionProblem Square(int64_t seq_len, int64_t heads = 1,
                        const AttentionOptions& options = {},
                        const OutputOptions& outputs = {}) {
  const TensorSpec spec{.shape = {1, heads, seq_len, 128}};
  return AttentionProblem::Create(spec, spec, spec, options, outputs).value();
}

TEST(MemoryEstimatorTest, CountsWhatTheContractSays) {
  std::mt19937_64 rng(kSeed);
  const MachineInfo machine;
  const MemoryEstimator estimator(machine, 3);
  for (int i = 0; i < 200; ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    const AttentionCase c(RandomShape(rng, 40), rng());
    const AttentionParams& p = c.problem().params();
    const MemoryEstimate estimate = estimator.Estimate(c.problem());
    const auto bytes_of = [](const auto& tensor) {
      return static_cast<int64_t>(tensor.size()) * SizeOf(tensor.type());
    };
    EXPECT_EQ(estimate.input_bytes,
              bytes_of(c.query) + bytes_of(c.key) + bytes_of(c.value) +
                  c.problem().bias_bytes() + c.problem().mask_bytes());
    EXPECT_EQ(
        estimate.output_bytes,
        bytes_of(c.output) + (p.return_lse ? c.problem().lse_bytes() : 0));
    EXPECT_EQ(estimate.workspace_bytes,
              MakeKernelPlan(c.problem(), machine).WorkspaceBytes(3));
    EXPECT_EQ(estimate.flash_bytes, estimate.input_bytes +
                                        estimate.output_bytes +
                                        estimate.workspace_bytes);
    int64_t scores = 0;
    int64_t pairs = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      const BatchEntry entry = c.problem().visibility().Entry(b);
      scores += entry.q_len * entry.kv_extent;
      for (int64_t row = 0; row < entry.q_len; ++row) {
        pairs += entry.VisibleRange(row).size();
      }
    }
    EXPECT_EQ(estimate.naive_bytes, 4 * p.num_q_heads * scores +
                                        estimate.input_bytes +
                                        estimate.output_bytes);
    EXPECT_EQ(estimate.flops,
              2 * (p.head_dim + p.v_head_dim) * p.num_q_heads * pairs);
    const MemoryEstimate backward = estimator.EstimateBackward(c.problem());
    EXPECT_EQ(backward.workspace_bytes,
              BackwardPlan(c.problem(), machine).WorkspaceBytes(3));
    EXPECT_EQ(backward.flops,
              2 * (3 * p.head_dim + 2 * p.v_head_dim) * p.num_q_heads * pairs);
  }
}

TEST(MemoryEstimatorTest, LseCountsOnlyWhereAskedFor) {
  const MemoryEstimator estimator(MachineInfo{}, 1);
  const auto without = estimator.Estimate(Square(100, 2));
  const auto with =
      estimator.Estimate(Square(100, 2, {}, {.return_lse = true}));
  EXPECT_EQ(with.output_bytes - without.output_bytes, 2 * 100 * 4);
}

TEST(MemoryEstimatorTest, FlashGrowsLinearlyAndNaiveQuadratically) {
  const MemoryEstimator estimator(MachineInfo{}, 4);
  const auto at = [&](int64_t n) { return estimator.Estimate(Square(n)); };
  EXPECT_LT(at(65536).flash_bytes, 4 * at(16384).flash_bytes + 4096);
  EXPECT_GT(at(65536).naive_bytes, 15 * at(16384).naive_bytes);
  EXPECT_GT(at(16384).ReductionRatio(), 0.75);
}

TEST(MemoryEstimatorTest, MoreThreadsNeverNeedLess) {
  const AttentionProblem problem = Square(1000, 4);
  int64_t last = 0;
  for (const int64_t threads : {1, 2, 3, 8, 64, 1000}) {
    const auto estimate =
        MemoryEstimator(MachineInfo{}, threads).Estimate(problem);
    EXPECT_GE(estimate.workspace_bytes, last);
    last = estimate.workspace_bytes;
  }
}

TEST(MemoryEstimatorTest, ReductionIsNegativeForTinyProblemsAndZeroForNone) {
  const MemoryEstimator estimator(MachineInfo{}, 1);
  EXPECT_LT(estimator.Estimate(Square(1)).ReductionRatio(), 0);
  EXPECT_EQ(MemoryEstimate{}.ReductionRatio(), 0);
}

TEST(MemoryEstimatorTest, AnEmptyProblemCostsNoFlops) {
  const MemoryEstimator estimator(MachineInfo{}, 2);
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{0, 2, 5, 8}, {2, 0, 5, 8}, {2, 2, 0, 8}}) {
    const auto problem = AttentionProblem::Create(
        {.shape = shape}, {.shape = shape}, {.shape = shape}, {});
    ASSERT_TRUE(problem.ok()) << problem.status();
    const auto estimate = estimator.Estimate(*problem);
    EXPECT_EQ(estimate.input_bytes, 0);
    EXPECT_EQ(estimate.output_bytes, 0);
    EXPECT_EQ(estimate.flops, 0);
  }
}

TEST(MemoryEstimatorTest, QueryHeadsMayBeNoneWhereKvHeadsAreSome) {
  const auto problem = AttentionProblem::Create(
      {.shape = {0, 5, 8}}, {.shape = {2, 7, 8}}, {.shape = {2, 7, 8}}, {});
  ASSERT_TRUE(problem.ok()) << problem.status();
  const auto estimate = MemoryEstimator(MachineInfo{}, 2).Estimate(*problem);
  EXPECT_EQ(estimate.flops, 0);
}

// No number of the estimate overflows, however large the problem is.
TEST(MemoryEstimatorTest, TheLargestProblemsAreExactOrSaturate) {
  std::mt19937_64 rng(kSeed);
  int computable = 0;
  for (int i = 0; i < 5000; ++i) {
    const auto extent = [&](unsigned bits) {
      return static_cast<int64_t>(rng() >> (63 - rng() % bits));
    };
    const int64_t batch = extent(rng() % 2 == 0 ? 20 : 63);
    const int64_t heads = extent(20);
    const std::vector<int64_t> query{batch, heads, extent(63), 64};
    const std::vector<int64_t> key{batch, heads, extent(63), 64};
    const auto problem = AttentionProblem::CreateOfAnySize(
        {.shape = query}, {.shape = key}, {.shape = key},
        {.causal = static_cast<Causal>(rng() % 3)});
    ASSERT_TRUE(problem.ok()) << problem.status();
    computable += problem->computable() ? 1 : 0;
    const MemoryEstimate estimate =
        MemoryEstimator(MachineInfo{}, 8).Estimate(*problem);
    const int64_t parts[] = {estimate.input_bytes,     estimate.output_bytes,
                             estimate.workspace_bytes, estimate.flash_bytes,
                             estimate.naive_bytes,     estimate.flops};
    ASSERT_GE(*std::min_element(std::begin(parts), std::end(parts)), 0)
        << "seed " << kSeed << " case " << i;
    ASSERT_GE(estimate.flash_bytes, estimate.workspace_bytes);
    ASSERT_GE(estimate.naive_bytes, estimate.input_bytes);
    const long double exact = 4.0L * static_cast<long double>(batch) *
                              static_cast<long double>(heads) *
                              static_cast<long double>(query[2]) * 64;
    ASSERT_EQ(estimate.output_bytes == kMax, exact >= 0x1p63L);
  }
  EXPECT_GT(computable, 100);
}

// An earlier version multiplied the bytes of packed keys by the number of
// splits.
TEST(MemoryEstimatorTest, VeryManyKeysAreCountedToTheByte) {
  constexpr int64_t kKeys = int64_t{1} << 40;
  const auto problem = AttentionProblem::Create(
      {.shape = {56, 1}}, {.shape = {kKeys, 1}}, {.shape = {kKeys, 1}}, {});
  ASSERT_TRUE(problem.ok()) << problem.status();
  const auto estimate = MemoryEstimator(MachineInfo{}, 8).Estimate(*problem);
  EXPECT_EQ(estimate.input_bytes, 4 * (56 + 2 * kKeys));
  EXPECT_GT(estimate.workspace_bytes, 2 * 4 * kKeys);
}

}  // namespace
}  // namespace attnd
