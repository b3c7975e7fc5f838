#include "core/reference_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/support/attention_case.h"

namespace attnd {
namespace {

using ::attnd::testing::AttentionCase;
using ::attnd::testing::RandomShape;
using ::testing::DoubleEq;
using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsNan;
using ::testing::Pointwise;

constexpr uint64_t kSeed = 20261122;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Answer {
  std::vector<double> output;
  std::vector<double> lse;
};

Answer Reference(const AttentionCase& c) {
  Answer answer{std::vector<double>(c.output.size(), -7),
                std::vector<double>(c.lse.size(), -7)};
  ReferenceAttention(c.problem(), c.query.data(), c.key.data(), c.value.data(),
                     answer.output.data(), answer.lse.data());
  return answer;
}

// One query row and `keys` keys of head_dim 1 and v_head_dim 2; scores are
// query * key.
AttentionCase OneRow(float query, const std::vector<float>& keys,
                     const std::vector<float>& values) {
  AttentionCase c({.kv_len = static_cast<int64_t>(keys.size()),
                   .head_dim = 1,
                   .v_head_dim = 2,
                   .options = {.return_lse = true}},
                  kSeed);
  c.query = {query};
  c.key = keys;
  c.value = values;
  return c;
}

TEST(ReferenceAttentionTest, OneKeyGivesItsValue) {
  const Answer answer = Reference(OneRow(2, {3}, {10, 20}));
  EXPECT_THAT(answer.output, ElementsAre(10, 20));
  EXPECT_THAT(answer.lse, ElementsAre(6));
}

TEST(ReferenceAttentionTest, EqualScoresGiveTheMean) {
  const Answer answer = Reference(OneRow(2, {3, 3}, {10, 20, 30, 60}));
  EXPECT_THAT(answer.output, ElementsAre(DoubleEq(20), DoubleEq(40)));
  EXPECT_THAT(answer.lse, ElementsAre(DoubleEq(6 + std::log(2))));
}

TEST(ReferenceAttentionTest, WeighsByTheExponentialOfTheScore) {
  const Answer answer =
      Reference(OneRow(1, {0, static_cast<float>(std::log(3))}, {0, 1, 1, 1}));
  EXPECT_THAT(answer.output, ElementsAre(DoubleNear(0.75, 1e-7), DoubleEq(1)));
}

TEST(ReferenceAttentionTest, HugeScoresDoNotOverflow) {
  const Answer answer = Reference(OneRow(1e4F, {1, -1}, {5, 6, 7, 8}));
  EXPECT_THAT(answer.output, ElementsAre(5, 6));
  EXPECT_THAT(answer.lse, ElementsAre(1e4));
}

// Without taking the largest score off: exactly what the contract writes.
TEST(ReferenceAttentionTest, IsTheFormulaOfTheContract) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 100; ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    const AttentionCase c(RandomShape(rng, 20), rng());
    const AttentionParams& p = c.problem().params();
    const int64_t shift =
        p.causal == Causal::kBottomRight ? p.kv_len - p.q_len : 0;
    Answer expected;
    for (int64_t row = 0; row < p.batch * p.num_q_heads * p.q_len; ++row) {
      const int64_t i_row = row % p.q_len;
      const int64_t head = row / p.q_len % p.num_q_heads;
      const int64_t batch = row / p.q_len / p.num_q_heads;
      const int64_t group = p.num_q_heads / p.num_kv_heads;
      const int64_t first = (batch * p.num_kv_heads + head / group) * p.kv_len;
      long double sum = 0;
      std::vector<long double> weighted(static_cast<size_t>(p.v_head_dim));
      for (int64_t j = 0; j < p.kv_len; ++j) {
        if (p.causal != Causal::kNone && j > i_row + shift) continue;
        long double dot = 0;
        for (int64_t d = 0; d < p.head_dim; ++d) {
          dot += static_cast<long double>(
                     c.query[static_cast<size_t>(row * p.head_dim + d)]) *
                 c.key[static_cast<size_t>((first + j) * p.head_dim + d)];
        }
        const long double weight =
            std::exp(static_cast<long double>(p.score_scale) * dot);
        sum += weight;
        for (size_t d = 0; d < weighted.size(); ++d) {
          weighted[d] +=
              weight *
              c.value[static_cast<size_t>((first + j) * p.v_head_dim) + d];
        }
      }
      for (const long double w : weighted) {
        expected.output.push_back(static_cast<double>(sum == 0 ? 0 : w / sum));
      }
      expected.lse.push_back(static_cast<double>(std::log(sum)));
    }
    const Answer answer = Reference(c);
    ASSERT_THAT(answer.output, Pointwise(DoubleNear(1e-12), expected.output));
    for (size_t row = 0; row < expected.lse.size(); ++row) {
      if (std::isinf(expected.lse[row])) {
        ASSERT_EQ(answer.lse[row], -kInfinity);
      } else {
        ASSERT_NEAR(answer.lse[row], expected.lse[row], 1e-12);
      }
    }
  }
}

TEST(ReferenceAttentionTest, RowsThatSeeNoKeyAreZero) {
  AttentionCase no_keys({.q_len = 3,
                         .kv_len = 0,
                         .head_dim = 4,
                         .v_head_dim = 5,
                         .options = {.return_lse = true}},
                        kSeed);
  EXPECT_THAT(Reference(no_keys).output, Each(0.0));
  EXPECT_THAT(Reference(no_keys).lse, Each(-kInfinity));

  // Rows 0 and 1 of 4 end before the first of 2 keys.
  AttentionCase early(
      {.q_len = 4,
       .kv_len = 2,
       .head_dim = 4,
       .v_head_dim = 1,
       .options = {.causal = Causal::kBottomRight, .return_lse = true}},
      kSeed);
  const Answer answer = Reference(early);
  EXPECT_EQ(answer.output[0], 0);
  EXPECT_EQ(answer.output[1], 0);
  EXPECT_EQ(answer.output[2], double{early.value[0]});
  EXPECT_EQ(answer.lse[1], -kInfinity);
  EXPECT_TRUE(std::isfinite(answer.lse[2]));
}

TEST(ReferenceAttentionTest, ARowWithoutAScoreAboveMinusInfinityIsZero) {
  const auto infinity = static_cast<float>(kInfinity);
  const Answer answer =
      Reference(OneRow(1, {-infinity, -infinity}, {kNan, 2, 3, 4}));
  EXPECT_THAT(answer.output, ElementsAre(0, 0));
  EXPECT_THAT(answer.lse, ElementsAre(-kInfinity));
}

TEST(ReferenceAttentionTest, ANanInQueryOrSeenKeyMakesTheRowNan) {
  const Answer query = Reference(OneRow(kNan, {1, 2}, {1, 2, 3, 4}));
  EXPECT_THAT(query.output, Each(IsNan()));
  EXPECT_THAT(query.lse, Each(IsNan()));
  const Answer key = Reference(OneRow(1, {1, kNan}, {1, 2, 3, 4}));
  EXPECT_THAT(key.output, Each(IsNan()));
  EXPECT_THAT(key.lse, Each(IsNan()));
  const auto infinity = static_cast<float>(kInfinity);
  const Answer beside = Reference(OneRow(1, {-infinity, kNan}, {1, 2, 3, 4}));
  EXPECT_THAT(beside.output, Each(IsNan()));
}

TEST(ReferenceAttentionTest, ANanOrInfinityInAValueStaysInItsColumn) {
  const Answer nan = Reference(OneRow(1, {1, 1}, {1, kNan, 3, 4}));
  EXPECT_THAT(nan.output, ElementsAre(DoubleEq(2), IsNan()));
  const auto infinity = static_cast<float>(kInfinity);
  const Answer inf = Reference(OneRow(1, {1, 1}, {1, 2, -infinity, 4}));
  EXPECT_THAT(inf.output, ElementsAre(-kInfinity, DoubleEq(3)));
}

TEST(ReferenceAttentionTest, AnInfiniteScoreFollowsTheFormula) {
  const auto infinity = static_cast<float>(kInfinity);
  const Answer answer = Reference(OneRow(1, {infinity, 1}, {1, 2, 3, 4}));
  EXPECT_THAT(answer.output, Each(IsNan()));
  EXPECT_THAT(answer.lse, ElementsAre(kInfinity));
}

TEST(ReferenceAttentionTest, HiddenKeysTouchNothing) {
  for (const Causal causal : {Causal::kTopLeft, Causal::kBottomRight}) {
    AttentionCase c({.q_len = 5,
                     .kv_len = 5,
                     .head_dim = 3,
                     .v_head_dim = 2,
                     .options = {.causal = causal, .return_lse = true}},
                    kSeed);
    const Answer clean = Reference(c);
    // Key 4 is seen by row 4 alone.
    for (size_t d = 12; d < 15; ++d) c.key[d] = kNan;
    for (size_t d = 8; d < 10; ++d) c.value[d] = kNan;
    const Answer dirty = Reference(c);
    for (size_t x = 0; x < 8; ++x) EXPECT_EQ(dirty.output[x], clean.output[x]);
    for (size_t x = 0; x < 4; ++x) EXPECT_EQ(dirty.lse[x], clean.lse[x]);
    EXPECT_THAT(dirty.lse[4], IsNan());
  }
}

}  // namespace
}  // namespace attnd
