#include "cost/monotone_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>

namespace attnd {
namespace {

constexpr int64_t kLastSize = int64_t{1} << 62;

// Finds the largest size whose `use` is at most 1, and counts the probes.
template <typename Use>
int64_t SearchCounting(const Use& use, int64_t last, int& probes) {
  probes = 0;
  return LargestThatFits(1, last, [&](int64_t size) {
    ++probes;
    const double used = use(size);
    return SizeProbe{.fits = used <= 1, .use = used};
  });
}

// Each probe of a search over lists of 65,536 numbers takes milliseconds in a
// thread for which other calls wait.
TEST(MonotoneSearchTest, FindsALinearUseInAFewProbes) {
  constexpr uint64_t kFirstSeed = 1;
  int most = 0;
  for (uint64_t seed = kFirstSeed; seed < kFirstSeed + 2000; ++seed) {
    std::mt19937_64 rng(seed);
    const double limit = std::exp2(static_cast<double>(rng() % 5000) / 100);
    const double fixed = limit * static_cast<double>(rng() % 100) / 2000;
    const auto use = [&](int64_t size) {
      return (fixed + static_cast<double>(size)) / limit;
    };
    int probes = 0;
    const int64_t found = SearchCounting(use, kLastSize, probes);
    if (found > 0) {
      EXPECT_LE(use(found), 1) << "seed " << seed;
    }
    EXPECT_GT(use(found + 1), 1) << "seed " << seed;
    most = std::max(most, probes);
  }
  EXPECT_LE(most, 32);
}

TEST(MonotoneSearchTest, FindsAnyMonotoneUse) {
  constexpr uint64_t kFirstSeed = 1;
  for (uint64_t seed = kFirstSeed; seed < kFirstSeed + 2000; ++seed) {
    std::mt19937_64 rng(seed);
    const auto right = static_cast<int64_t>(rng() >> (2 + rng() % 62));
    const double power = static_cast<double>(1 + rng() % 400) / 100;
    const bool steps = rng() % 2 == 0;
    // Up to `right` the use is at most 1, and from then on it is more.
    const auto use = [&](int64_t size) {
      if (steps) return size <= right ? 0.5 : 2.0;
      const double share = std::pow(
          static_cast<double>(size) / static_cast<double>(right + 1), power);
      return size <= right ? std::min(share, 1.0) : std::max(share, 1.0001);
    };
    int probes = 0;
    EXPECT_EQ(SearchCounting(use, kLastSize, probes),
              std::min(right, kLastSize))
        << "seed " << seed;
    EXPECT_LE(probes, 2 * 62 + 8) << "seed " << seed;
  }
}

TEST(MonotoneSearchTest, StopsAtTheLastSize) {
  int probes = 0;
  EXPECT_EQ(SearchCounting([](int64_t) { return 0.0; }, 1000, probes), 1000);
  EXPECT_EQ(SearchCounting([](int64_t) { return 2.0; }, 1000, probes), 0);
  EXPECT_EQ(probes, 1);
}

}  // namespace
}  // namespace attnd
