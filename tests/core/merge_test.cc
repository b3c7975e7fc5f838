#include "core/merge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/numbers.h"

namespace attnd {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::IsNan;

struct Part {
  std::vector<float> output;
  std::vector<float> lse;
};

Part Merge(const std::vector<Part>& parts, int64_t rows, int64_t v_head_dim) {
  std::vector<PartialResult> partials;
  partials.reserve(parts.size());
  for (const Part& part : parts) {
    partials.push_back({part.output.data(), part.lse.data()});
  }
  Part merged{std::vector<float>(static_cast<size_t>(rows * v_head_dim), -7),
              std::vector<float>(static_cast<size_t>(rows), -7)};
  MergePartials(partials, rows, v_head_dim, merged.output.data(),
                merged.lse.data());
  return merged;
}

TEST(MergeTest, OnePartIsItself) {
  const Part merged = Merge({{{1, 2, 3, 4}, {-5, 6}}}, 2, 2);
  EXPECT_THAT(merged.output, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(merged.lse, ElementsAre(-5, 6));
}

TEST(MergeTest, WeighsByTheExponentialOfLseRowByRow) {
  const auto ln3 = static_cast<float>(std::log(3));
  const Part merged =
      Merge({{{8, 0, 1, 1}, {0, 2}}, {{4, 4, 3, 5}, {ln3, 2}}}, 2, 2);
  EXPECT_THAT(merged.output,
              ElementsAre(FloatEq(5), FloatEq(3), FloatEq(2), FloatEq(3)));
  EXPECT_THAT(merged.lse,
              ElementsAre(FloatEq(static_cast<float>(std::log(4))),
                          FloatEq(static_cast<float>(2 + std::log(2)))));
}

TEST(MergeTest, RowsWiderThanTheStackBufferAreMergedWhole) {
  std::vector<float> ones(300, 1);
  std::vector<float> threes(300, 3);
  const Part merged = Merge({{ones, {0}}, {threes, {0}}}, 1, 300);
  EXPECT_THAT(merged.output, Each(2));
}

TEST(MergeTest, ExponentsOfAnySizeNeitherOverflowNorVanish) {
  const Part high = Merge({{{2}, {1e30F}}, {{4}, {1e30F}}}, 1, 1);
  EXPECT_THAT(high.output, ElementsAre(3));
  EXPECT_THAT(high.lse, ElementsAre(1e30F));
  const Part low = Merge({{{2}, {-1e30F}}, {{4}, {-1e30F}}}, 1, 1);
  EXPECT_THAT(low.output, ElementsAre(3));
  const Part apart = Merge({{{2}, {-500}}, {{4}, {500}}}, 1, 1);
  EXPECT_THAT(apart.output, ElementsAre(4));
  EXPECT_THAT(apart.lse, ElementsAre(500));
}

TEST(MergeTest, APartThatSawNothingIsNotRead) {
  const Part merged =
      Merge({{{kNan, kInfinity}, {-kInfinity}}, {{1, 2}, {3}}}, 1, 2);
  EXPECT_THAT(merged.output, ElementsAre(1, 2));
  EXPECT_THAT(merged.lse, ElementsAre(3));
}

TEST(MergeTest, NothingSeenIsZero) {
  const Part none = Merge({{{kNan}, {-kInfinity}}, {{5}, {-kInfinity}}}, 1, 1);
  EXPECT_THAT(none.output, ElementsAre(0));
  EXPECT_THAT(none.lse, ElementsAre(-kInfinity));
  const Part empty = Merge({}, 2, 1);
  EXPECT_THAT(empty.output, Each(0));
  EXPECT_THAT(empty.lse, Each(-kInfinity));
}

// The first part has the sink and saw no key.
TEST(MergeTest, ASinkAloneWeighsNothingButItself) {
  const Part merged = Merge({{{0}, {2}}, {{6}, {2}}}, 1, 1);
  EXPECT_THAT(merged.output, ElementsAre(3));
}

TEST(MergeTest, NansAndInfinitiesFollowTheFormula) {
  const Part lse = Merge({{{1, 2}, {kNan}}, {{1, 2}, {3}}}, 1, 2);
  EXPECT_THAT(lse.output, Each(IsNan()));
  EXPECT_THAT(lse.lse, Each(IsNan()));
  const Part infinite = Merge({{{1, 2}, {kInfinity}}, {{1, 2}, {3}}}, 1, 2);
  EXPECT_THAT(infinite.output, Each(IsNan()));
  EXPECT_THAT(infinite.lse, ElementsAre(kInfinity));
  const Part both = Merge({{{1}, {kInfinity}}, {{1}, {kNan}}}, 1, 1);
  EXPECT_THAT(both.lse, Each(IsNan()));
  const Part column = Merge({{{kNan, 2}, {1}}, {{1, 4}, {1}}}, 1, 2);
  EXPECT_THAT(column.output, ElementsAre(IsNan(), 3));
}

TEST(MergeTest, MayOverwriteAPart) {
  std::vector<float> output = {1, 2};
  std::vector<float> lse = {0};
  const std::vector<float> other_output = {3, 6};
  const std::vector<float> other_lse = {0};
  const PartialResult partials[] = {{output.data(), lse.data()},
                                    {other_output.data(), other_lse.data()}};
  MergePartials(partials, 1, 2, output.data(), lse.data());
  EXPECT_THAT(output, ElementsAre(2, 4));
}

}  // namespace
}  // namespace attnd
