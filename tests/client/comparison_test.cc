#include "client/attnctl/comparison.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "tests/support/numbers.h"

namespace attnd::attnctl {
namespace {

using ::testing::ElementsAre;

Comparison CompareOne(float got, double expected) {
  return *Compare(std::vector<float>{got}, {1}, std::vector<double>{expected},
                  {1});
}

TEST(ComparisonTest, FindsTheWorstElement) {
  const auto comparison =
      Compare(std::vector<float>{0, 1, 2, 3, 4, 5}, {2, 3},
              std::vector<double>{0, 1.25, 2, 3, 3.5, 5.25}, {2, 3});
  ASSERT_TRUE(comparison.ok());
  EXPECT_EQ(comparison->worst_error, 0.5);
  EXPECT_THAT(comparison->worst_index, ElementsAre(1, 1));
  EXPECT_TRUE(comparison->Within(0.5));
  EXPECT_FALSE(comparison->Within(0.49));
}

TEST(ComparisonTest, KnowsInfinitiesAndNan) {
  EXPECT_EQ(CompareOne(-std::numeric_limits<float>::infinity(), -kInfinity)
                .worst_error,
            0);
  EXPECT_EQ(
      CompareOne(std::numeric_limits<float>::quiet_NaN(), kNan).worst_error, 0);
  EXPECT_EQ(CompareOne(1, kNan).worst_error, kInfinity);
  EXPECT_EQ(CompareOne(std::numeric_limits<float>::quiet_NaN(), 1).worst_error,
            kInfinity);
  EXPECT_FALSE(CompareOne(1, kInfinity).Within(1e30));
}

TEST(ComparisonTest, RefusesOtherShapes) {
  const std::vector<float> got(6);
  const std::vector<double> expected(6);
  EXPECT_FALSE(Compare(got, {2, 3}, expected, {3, 2}).ok());
  EXPECT_TRUE(Compare({}, {0, 3}, {}, {0, 3})->worst_index.empty());
}

}  // namespace
}  // namespace attnd::attnctl
