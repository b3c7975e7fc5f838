#include "base/checked_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "tests/support/numbers.h"

namespace attnd {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

// This type can hold the sum or the product of two int64 numbers.
__extension__ using Wide = __int128;

bool Fits(Wide x) { return x >= kMin && x <= kMax; }

// Returns numbers of every magnitude and sign, including the limits of the
// type.
int64_t AnyInt64(std::mt19937_64& rng) {
  switch (rng() % 8) {
    case 0:
      return 0;
    case 1:
      return kMax;
    case 2:
      return kMin;
    default:
      return static_cast<int64_t>(rng()) >> (rng() % 63);
  }
}

TEST(CheckedMathTest, ProductOfTwoIsExactOrNothing) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 20000; ++i) {
    const int64_t a = AnyInt64(rng);
    const int64_t b = AnyInt64(rng);
    SCOPED_TRACE(::testing::Message() << a << " * " << b << " seed " << kSeed);
    const Wide exact = Wide{a} * b;
    const auto product = CheckedProduct({a, b});
    ASSERT_EQ(product.has_value(), Fits(exact));
    if (product) {
      ASSERT_TRUE(*product == exact);
    }
  }
}

TEST(CheckedMathTest, SumOfTwoIsExactOrNothing) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 20000; ++i) {
    const int64_t a = AnyInt64(rng);
    const int64_t b = AnyInt64(rng);
    SCOPED_TRACE(::testing::Message() << a << " + " << b << " seed " << kSeed);
    const Wide exact = Wide{a} + b;
    const auto sum = CheckedSum({a, b});
    ASSERT_EQ(sum.has_value(), Fits(exact));
    if (sum) {
      ASSERT_TRUE(*sum == exact);
    }
  }
}

TEST(CheckedMathTest, EmptyProductIsOneAndEmptySumIsZero) {
  EXPECT_EQ(CheckedProduct({}), 1);
  EXPECT_EQ(CheckedSum({}), 0);
}

TEST(CheckedMathTest, AZeroFactorMakesTheProductZeroWhateverTheOthersAre) {
  EXPECT_EQ(CheckedProduct({kMax, kMax, 0}), 0);
  EXPECT_EQ(CheckedProduct({0, kMax, kMax}), 0);
}

TEST(CheckedMathTest, AnOverflowOnTheWayIsNotForgotten) {
  EXPECT_EQ(CheckedProduct({int64_t{1} << 32, int64_t{1} << 32, 1}),
            std::nullopt);
  EXPECT_EQ(CheckedSum({kMax, 1, -1}), std::nullopt);
}

TEST(CheckedMathTest, SaturatesAtTheLargestNumber) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 20000; ++i) {
    const auto a = static_cast<int64_t>(rng() >> (1 + rng() % 63));
    const auto b = static_cast<int64_t>(rng() >> (1 + rng() % 63));
    SCOPED_TRACE(::testing::Message() << a << ", " << b << " seed " << kSeed);
    const auto saturated = [](Wide x) {
      return static_cast<int64_t>(std::min<Wide>(x, kMax));
    };
    ASSERT_EQ(SaturatingProduct({a, b}), saturated(Wide{a} * b));
    ASSERT_EQ(SaturatingSum({a, b}), saturated(Wide{a} + b));
    if (b == 0) continue;
    ASSERT_EQ(CeilDiv(a, b), saturated((Wide{a} + b - 1) / b));
    ASSERT_EQ(RoundUp(a, b), saturated((Wide{a} + b - 1) / b * b));
  }
  EXPECT_EQ(SaturatingProduct({kMax, kMax, 0}), 0);
  EXPECT_EQ(SaturatingSum({kMax, kMax, kMax}), kMax);
  EXPECT_EQ(RoundUp(kMax, 64), kMax);
}

TEST(CheckedMathTest, RoundsUpToMultiples) {
  for (int64_t a = 0; a < 50; ++a) {
    for (int64_t b = 1; b < 20; ++b) {
      const int64_t rounded = RoundUp(a, b);
      EXPECT_EQ(rounded % b, 0);
      EXPECT_GE(rounded, a);
      EXPECT_LT(rounded - a, b);
      EXPECT_EQ(CeilDiv(a, b) * b, rounded);
    }
  }
}

}  // namespace
}  // namespace attnd
