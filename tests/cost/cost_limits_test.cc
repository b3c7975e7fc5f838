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

LimitCheck Check(const Sizes& sizes, const CostLimits& limits = kLimits,
                 Transport transport = Transport::kInline) {
  CostQuery query = WithSizes(
      {.transport = transport, .max_message_bytes = limits.max_message_bytes},
      sizes);
  EXPECT_TRUE(query.SetDefaults().ok());
  const auto cost = CostOf(query);
  EXPECT_TRUE(cost.ok()) << cost.status();
  return cost.ok() ? CheckLimits(query, *cost, limits) : LimitCheck();
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
TEST(CostLimitsTest, TheFactorIsTheOneThatTheNextLengthExceeds) {
  for (const Transport transport :
       {Transport::kInline, Transport::kStream, Transport::kSharedMemory}) {
    for (const int64_t concurrency : {1, 2, 3, 7}) {
      const bool streams = transport == Transport::kStream;
      const CostLimits limits{
          .max_message_bytes = 100000,
          .budget_bytes = (streams ? 18 : 2) * kMiB * concurrency,
          .max_in_flight = 8};
      const auto check = [&](int64_t length) {
        return Check({.seq_len = length,
                      .dimensions = 8,
                      .num_q_heads = 4,
                      .num_kv_heads = 1,
                      .threads = 2,
                      .concurrency = concurrency},
                     limits, transport);
      };
      int64_t length = 10;
      ASSERT_TRUE(check(length).fits);
      const std::string_view factor = check(length).limiting_factor;
      while (check(length).fits && length < 100000) ++length;
      ASSERT_FALSE(check(length).fits);
      EXPECT_EQ(factor, check(length).limiting_factor) << length;
    }
  }
}

TEST(CostLimitsTest, WithoutLimitsNumbersRunOut) {
  const CostLimits none{
      .max_message_bytes = kMax, .budget_bytes = kMax, .max_in_flight = kMax};
  const LimitCheck check = Check({.seq_len = 1000}, none);
  EXPECT_TRUE(check.fits);
  EXPECT_EQ(check.limiting_factor, "int64_range");
}

}  // namespace
}  // namespace attnd
