// Checks how much memory an answer takes while it is found.
#include <gtest/gtest.h>

#include <algorithm>

#include "cost/largest_fit.h"
#include "tests/cost/sizes.h"
#include "tests/fuzz/heap_peak.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

TEST(SearchMemoryTest, DoesNotDependOnTheAnswer) {
  const CostQuery query =
      WithSizes({}, {.seq_len = 1, .num_q_heads = 8, .num_kv_heads = 2});
  for (const EstimateGoal goal :
       {EstimateGoal::kMaxSeqLen, EstimateGoal::kMaxBatch,
        EstimateGoal::kMaxConcurrency}) {
    int64_t largest_peak = 0;
    int64_t smallest_peak = kMax;
    int64_t largest_answer = 0;
    for (const int64_t budget_bytes : {8 * kMiB, 1024 * kMiB, 65536 * kMiB}) {
      const CostLimits limits{.max_message_bytes = kMax,
                              .budget_bytes = budget_bytes,
                              .max_in_flight = kMax};
      const fuzz::HeapPeak peak;
      const auto answer = FindLargestFit(query, goal, limits);
      largest_peak = std::max(largest_peak, peak.bytes());
      smallest_peak = std::min(smallest_peak, peak.bytes());
      ASSERT_TRUE(answer.ok()) << answer.status();
      EXPECT_GT(answer->size, largest_answer);
      largest_answer = answer->size;
    }
    EXPECT_EQ(smallest_peak, largest_peak);
    EXPECT_LT(largest_peak, 16 << 10);
  }
}

// An estimate takes no more, although the search for its limiting factor goes
// through problems of any size.
TEST(SearchMemoryTest, DoesNotDependOnTheProblem) {
  int64_t peaks[2] = {};
  for (const int64_t length : {int64_t{16}, int64_t{1} << 26}) {
    CostQuery query = WithSizes({}, {.seq_len = length});
    ASSERT_TRUE(query.SetDefaults().ok());
    const CostLimits limits{.max_message_bytes = kMax,
                            .budget_bytes = int64_t{1} << 50,
                            .max_in_flight = 8};
    const fuzz::HeapPeak peak;
    const auto cost = CostOf(query);
    ASSERT_TRUE(cost.ok()) << cost.status();
    EXPECT_TRUE(CheckLimits(query, *cost, limits).fits);
    peaks[length == 16 ? 0 : 1] = peak.bytes();
  }
  EXPECT_EQ(peaks[0], peaks[1]);
  EXPECT_LT(peaks[0], 16 << 10);
}

}  // namespace
}  // namespace attnd
