#include "cost/memory_shares.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <random>

#include "tests/support/numbers.h"

namespace attnd {
namespace {

TEST(MemorySharesTest, MemoryIsSharedOnce) {
  struct Case {
    int64_t available;
    int64_t budget;
    int64_t arriving;
    int64_t own;
  };
  const Case cases[] = {{64'000, 53'504, 4'096, 6'400},
                        {10'000, 6'500, 2'500, 1'000},
                        {2'000, 1'244, 500, 256},
                        {1'024, 512, 256, 256},
                        {100, 50, 25, 25}};
  for (const Case& expected : cases) {
    const MemoryShares shares = ShareMemory({}, expected.available * kMiB);
    EXPECT_EQ(shares.budget_bytes, expected.budget * kMiB);
    EXPECT_EQ(shares.arriving_bytes, expected.arriving * kMiB);
    EXPECT_EQ(shares.own_bytes, expected.own * kMiB);
    EXPECT_EQ(shares.total_bytes(), expected.available * kMiB);
  }
  MemoryOptions options;
  const auto arriving_mib = [&](int64_t message_mib, int64_t budget_mib) {
    options = {.budget_bytes = budget_mib * kMiB,
               .max_message_bytes = message_mib * kMiB};
    const MemoryShares shares = ShareMemory(options, 10'000 * kMiB);
    if (budget_mib > 0) {
      EXPECT_EQ(shares.budget_bytes, budget_mib * kMiB);
    }
    return shares.arriving_bytes / kMiB;
  };
  EXPECT_EQ(arriving_mib(16, 0), 256);
  EXPECT_EQ(arriving_mib(1, 0), 64);
  EXPECT_EQ(arriving_mib(16, 100'000), 256);
  EXPECT_EQ(arriving_mib(256, 2'000), 1'000);
  EXPECT_EQ(arriving_mib(256, 8), 320);
  EXPECT_EQ(arriving_mib(1, 8), 64);
  // All limits have their largest values.
  options = {.budget_bytes = kMax,
             .max_message_bytes = std::numeric_limits<int32_t>::max()};
  EXPECT_EQ(ShareMemory(options, 10'000 * kMiB).arriving_bytes,
            16 * options.max_message_bytes);
}

// A scan of all limits, in order, finds the same limit as the search.
TEST(MemorySharesTest, TheSmallestLimitIsTheFirstThatHolds) {
  for (const int64_t message_mib : {1, 16, 100, 256, 1000, 2047}) {
    const int64_t message_bytes =
        message_mib < 2047 ? message_mib * kMiB
                           : int64_t{std::numeric_limits<int32_t>::max()};
    for (const int64_t messages : {0, 1, 3, 40}) {
      // The limit grows with the peak, so each scan begins where the previous
      // one ended.
      int64_t limit_mib = 1;
      for (int64_t peak_mib = 1; peak_mib < 150'000;
           peak_mib += 1 + peak_mib / 16) {
        const MemoryNeed need = {
            .peak_bytes = peak_mib * kMiB - 1,
            .arriving_bytes = messages * message_bytes / 3};
        const auto holds = [&](int64_t mib) {
          return SharesHold(
              ShareMemory({.max_message_bytes = message_bytes}, mib * kMiB),
              need, message_bytes);
        };
        while (!holds(limit_mib)) ++limit_mib;
        const auto limit_bytes = SmallestMemoryLimit(need, message_bytes);
        ASSERT_TRUE(limit_bytes.has_value());
        ASSERT_EQ(*limit_bytes, limit_mib * kMiB)
            << "peak " << peak_mib << " MiB, " << messages << " messages of "
            << message_mib << " MiB";
        ASSERT_GE(
            ShareMemory({.max_message_bytes = message_bytes}, *limit_bytes)
                .budget_bytes,
            need.peak_bytes);
      }
    }
  }
}

TEST(MemorySharesTest, EveryShareIsLargeEnough) {
  // Even a server for tiny calls needs memory for its code.
  EXPECT_EQ(SmallestMemoryLimit({.peak_bytes = 1}, kDefaultMaxMessageBytes),
            256 * kMiB);
  // The budget decides: half of a limit that is not above 1 GiB.
  EXPECT_EQ(
      SmallestMemoryLimit({.peak_bytes = 400 * kMiB}, kDefaultMaxMessageBytes),
      800 * kMiB);
  // Messages that arrive at the same time decide: they take four fifths of a
  // quarter.
  EXPECT_EQ(SmallestMemoryLimit(
                {.peak_bytes = 400 * kMiB, .arriving_bytes = 200 * kMiB},
                kDefaultMaxMessageBytes),
            1000 * kMiB);
  // No share is large enough for these messages, so the largest one has to do.
  EXPECT_EQ(SmallestMemoryLimit({.peak_bytes = 1, .arriving_bytes = kMax},
                                kDefaultMaxMessageBytes),
            4 * 16 * 256 * kMiB);
  EXPECT_EQ(SmallestMemoryLimit({.peak_bytes = kMax}, kDefaultMaxMessageBytes),
            std::nullopt);
}

TEST(MemorySharesTest, EveryShareGrowsWithTheLimit) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 100'000; ++i) {
    const MemoryOptions options = {
        .max_message_bytes = static_cast<int64_t>(rng() >> (33 + rng() % 16))};
    const auto limit = static_cast<int64_t>(rng() >> (1 + rng() % 40));
    const MemoryShares smaller = ShareMemory(options, limit);
    const MemoryShares larger = ShareMemory(options, limit + 1 + kMiB);
    ASSERT_LE(smaller.budget_bytes, larger.budget_bytes) << "case " << i;
    ASSERT_LE(smaller.arriving_bytes, larger.arriving_bytes) << "case " << i;
    ASSERT_LE(smaller.own_bytes, larger.own_bytes) << "case " << i;
  }
}

}  // namespace
}  // namespace attnd
