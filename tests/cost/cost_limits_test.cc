#include "cost/cost_limits.h"

#include <gtest/gtest.h>

#include <string_view>

#include "tests/cost/sizes.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

constexpr CostLimits kLimits{.max_message_bytes = 16 * kMiB,
                             .budget_bytes = 100 * kMiB,
                             .max_in_flight = 8};

CostQuery SizesQuery(const Sizes& sizes, const CostLimits& limits,
                     Transport transport) {
  CostQuery query = WithSizes(
      {.transport = transport, .max_message_bytes = limits.max_message_bytes},
      sizes);
  EXPECT_TRUE(query.SetDefaults().ok());
  return query;
}

QueryCost SizesCost(const Sizes& sizes, const CostLimits& limits,
                    Transport transport) {
  const auto cost = CostOf(SizesQuery(sizes, limits, transport));
  EXPECT_TRUE(cost.ok()) << cost.status();
  return cost.value_or(QueryCost());
}

LimitCheck Check(const Sizes& sizes, const CostLimits& limits = kLimits,
                 Transport transport = Transport::kInline) {
  return CheckLimits(SizesQuery(sizes, limits, transport),
                     SizesCost(sizes, limits, transport), limits);
}

TEST(CostLimitsTest, NamesTheLimitThatIsExceededMost) {
  EXPECT_TRUE(Check({.seq_len = 1000}).fits);
  const LimitCheck slots = Check({.seq_len = 1, .concurrency = 9});
  EXPECT_FALSE(slots.fits);
  EXPECT_EQ(slots.limiting_factor, "max_in_flight");
  const LimitCheck budget = Check({.seq_len = 8000, .concurrency = 8});
  EXPECT_FALSE(budget.fits);
  EXPECT_EQ(budget.limiting_factor, "memory_budget");
  const LimitCheck message = Check({.seq_len = 12000});
  EXPECT_FALSE(message.fits);
  EXPECT_EQ(message.limiting_factor, "message_size");
}

// Compares the result with that of a search through every length.
TEST(CostLimitsTest, TheFactorIsTheOneThatStopsTheLongestThatFits) {
  for (const Transport transport :
       {Transport::kInline, Transport::kStream, Transport::kSharedMemory}) {
    for (const int64_t concurrency : {1, 2, 3, 7}) {
      const bool streams = transport == Transport::kStream;
      const CostLimits limits{
          .max_message_bytes = 100000,
          .budget_bytes = (streams ? 18 : 2) * kMiB * concurrency,
          .max_in_flight = 8};
      const auto sizes = [&](int64_t length) {
        return Sizes{.seq_len = length,
                     .dimensions = 8,
                     .num_q_heads = 4,
                     .num_kv_heads = 1,
                     .threads = 2,
                     .concurrency = concurrency};
      };
      const auto exceeded = [&](int64_t length) {
        return ExceededLimit(SizesCost(sizes(length), limits, transport),
                             limits);
      };
      ASSERT_TRUE(exceeded(10).empty());
      int64_t longest = 10;
      for (int64_t length = 11; length < 50000; ++length) {
        if (exceeded(length).empty()) longest = length;
      }
      EXPECT_EQ(Check(sizes(10), limits, transport).limiting_factor,
                exceeded(longest + 1))
          << longest;
    }
  }
}

// Lengths of different entries grow at their own pace.
TEST(CostLimitsTest, ListsOfLengthsGrowInProportion) {
  CostQuery query = WithSizes(
      {.options = {.query_lengths = {1, 90, 100}, .key_lengths = {100, 3, 50}}},
      {.seq_len = 100, .batch = 3, .num_q_heads = 2});
  ASSERT_TRUE(query.SetDefaults().ok());
  const auto cost = CostOf(query);
  ASSERT_TRUE(cost.ok()) << cost.status();
  const auto factor = [&](int64_t message_bytes, int64_t budget_bytes) {
    const LimitCheck check = CheckLimits(
        query, *cost,
        {.max_message_bytes = message_bytes, .budget_bytes = budget_bytes});
    EXPECT_TRUE(check.fits);
    return check.limiting_factor;
  };
  EXPECT_EQ(factor(kMiB, 64 * kMiB), kMessageSizeLimit);
  EXPECT_EQ(factor(64 * kMiB, 64 * kMiB), kMemoryBudgetLimit);
}

TEST(CostLimitsTest, ComparesFactorsWithoutOverflow) {
  // 2^60 calls exceed the number of calls by a larger factor than the bytes do.
  const LimitCheck calls =
      Check({.seq_len = 1024, .concurrency = int64_t{1} << 60});
  EXPECT_FALSE(calls.fits);
  EXPECT_EQ(calls.limiting_factor, kMaxInFlightLimit);
  const LimitCheck tokens = Check({.seq_len = int64_t{1} << 62});
  EXPECT_FALSE(tokens.fits);
  EXPECT_EQ(tokens.limiting_factor, kMessageSizeLimit);
}

TEST(CostLimitsTest, WithoutLimitsNumbersRunOut) {
  const CostLimits none{
      .max_message_bytes = kMax, .budget_bytes = kMax, .max_in_flight = kMax};
  const LimitCheck check = Check({.seq_len = 1000}, none);
  EXPECT_TRUE(check.fits);
  EXPECT_EQ(check.limiting_factor, "int64_range");
  // Without limits, what does not fit an int64 does not fit either.
  const LimitCheck absurd = Check({.seq_len = int64_t{1} << 40}, none);
  EXPECT_FALSE(absurd.fits);
  EXPECT_EQ(absurd.limiting_factor, "int64_range");
}

}  // namespace
}  // namespace attnd
