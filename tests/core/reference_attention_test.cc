#include "core/reference_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "tests/support/attention_case.h"
#include "tests/support/gradient_case.h"
#include "tests/support/numbers.h"
#include "tests/support/typed_array.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::AttentionCase;
using ::attnd::testing::CaseShape;
using ::attnd::testing::GradientCase;
using ::attnd::testing::RandomGradientCase;
using ::attnd::testing::RandomShape;
using ::attnd::testing::TypedArray;
using ::testing::DoubleEq;
using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsNan;
using ::testing::Pointwise;

struct Answer {
  std::vector<double> output;
  std::vector<double> lse;
};

Answer Reference(AttentionCase c) {
  Answer answer{std::vector<double>(static_cast<size_t>(c.output.size()), -7),
                std::vector<double>(c.lse.size(), -7)};
  ReferenceAttention(c.problem(), c.buffers(), answer.output.data(),
                     answer.lse.data());
  return answer;
}

// Makes a case with one query row, one key for each number in `keys`, head_dim
// 1 and v_head_dim 2. Its scores are query * key.
AttentionCase OneRow(float query, const std::vector<float>& keys,
                     const std::vector<float>& values,
                     const AttentionOptions& options = {}) {
  AttentionCase c({.kv_len = static_cast<int64_t>(keys.size()),
                   .head_dim = 1,
                   .v_head_dim = 2,
                   .options = options},
                  kSeed);
  c.query.Set(0, query);
  std::copy(keys.begin(), keys.end(), c.key.floats().begin());
  std::copy(values.begin(), values.end(), c.value.floats().begin());
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

// This test computes the formula of the contract as it is written, without
// subtracting the largest score.
TEST(ReferenceAttentionTest, IsTheFormulaOfTheContract) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 100; ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomShape(rng, 20), rng());
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
          dot += static_cast<long double>(c.query[row * p.head_dim + d]) *
                 c.key[(first + j) * p.head_dim + d];
        }
        const long double weight =
            std::exp(static_cast<long double>(p.score_scale) * dot);
        sum += weight;
        for (size_t d = 0; d < weighted.size(); ++d) {
          weighted[d] +=
              weight *
              c.value[(first + j) * p.v_head_dim + static_cast<int64_t>(d)];
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
                         .outputs = {.return_lse = true}},
                        kSeed);
  EXPECT_THAT(Reference(no_keys).output, Each(0.0));
  EXPECT_THAT(Reference(no_keys).lse, Each(-kInfinity));

  // Rows 0 and 1 of 4 end before the first of 2 keys.
  AttentionCase early({.q_len = 4,
                       .kv_len = 2,
                       .head_dim = 4,
                       .v_head_dim = 1,
                       .options = {.causal = Causal::kBottomRight},
                       .outputs = {.return_lse = true}},
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
                     .options = {.causal = causal},
                     .outputs = {.return_lse = true}},
                    kSeed);
    const Answer clean = Reference(c);
    // Only row 4 sees key 4.
    for (int64_t d = 12; d < 15; ++d) c.key.Set(d, kNan);
    for (int64_t d = 8; d < 10; ++d) c.value.Set(d, kNan);
    const Answer dirty = Reference(c);
    for (size_t x = 0; x < 8; ++x) EXPECT_EQ(dirty.output[x], clean.output[x]);
    for (size_t x = 0; x < 4; ++x) EXPECT_EQ(dirty.lse[x], clean.lse[x]);
    EXPECT_THAT(dirty.lse[4], IsNan());
  }
}

// --- options, one at a time --------------------------------------------------

TEST(ReferenceAttentionTest, SoftCapBendsScores) {
  const Answer answer =
      Reference(OneRow(1, {3}, {10, 20}, {.logits_soft_cap = 2.0F}));
  EXPECT_THAT(answer.lse, ElementsAre(DoubleEq(2 * std::tanh(1.5))));
}

TEST(ReferenceAttentionTest, AlibiCountsTheDistanceFromThePosition) {
  // The position of the row is 2, so the scores are 1 - 0.5 * {2, 1, 0, 1}.
  const Answer answer =
      Reference(OneRow(1, {1, 1, 1, 1}, {1, 0, 0, 0, 0, 0, 0, 0},
                       {.query_offsets = {2}, .alibi_slopes = {0.5F}}));
  const double sum = 1 + 2 * std::exp(-0.5) + std::exp(-1);
  EXPECT_THAT(answer.output,
              ElementsAre(DoubleEq(std::exp(-1) / sum), DoubleEq(0)));
  EXPECT_THAT(answer.lse, ElementsAre(DoubleEq(1 + std::log(sum))));
}

TEST(ReferenceAttentionTest, BiasIsAddedAfterTheSoftCap) {
  AttentionCase c =
      OneRow(1, {3}, {10, 20},
             {.logits_soft_cap = 2.0F, .bias = TensorSpec{.shape = {1}}});
  c.bias.Set(0, 7);
  EXPECT_THAT(Reference(c).lse, ElementsAre(DoubleEq(2 * std::tanh(1.5) + 7)));
}

TEST(ReferenceAttentionTest, ABiasOfMinusInfinityHidesEvenNan) {
  AttentionCase c = OneRow(1, {kNan, 3}, {kNan, kNan, 5, 6},
                           {.bias = TensorSpec{.shape = {2}}});
  c.bias.Set(0, -std::numeric_limits<float>::infinity());
  c.bias.Set(1, 1);
  EXPECT_THAT(Reference(c).output, ElementsAre(5, 6));
  EXPECT_THAT(Reference(c).lse, ElementsAre(4));
  // The lowest finite number hides nothing, so the NaN reaches the output.
  c.bias.Set(0, -std::numeric_limits<float>::max());
  EXPECT_THAT(Reference(c).output, Each(IsNan()));
}

TEST(ReferenceAttentionTest, AMaskOfZeroHidesAndAnyOtherByteShows) {
  AttentionCase c = OneRow(1, {1, 1, kNan}, {1, 2, 3, 4, kNan, kNan},
                           {.mask = TensorSpec{DataType::kBool, {3}}});
  c.mask = {std::byte{1}, std::byte{0x80}, std::byte{0}};
  EXPECT_THAT(Reference(c).output, ElementsAre(DoubleEq(2), DoubleEq(3)));
}

TEST(ReferenceAttentionTest, ASinkTakesWeightAndGivesNoValue) {
  const Answer answer = Reference(OneRow(1, {0}, {4, 8}, {.sink_logits = {0}}));
  EXPECT_THAT(answer.output, ElementsAre(DoubleEq(2), DoubleEq(4)));
  EXPECT_THAT(answer.lse, ElementsAre(DoubleEq(std::log(2))));
  const Answer none = Reference(
      OneRow(1, {0}, {4, 8},
             {.sink_logits = {-std::numeric_limits<float>::infinity()}}));
  EXPECT_THAT(none.output, ElementsAre(4, 8));
  // A row that sees no key returns the sink as its lse.
  const Answer nothing = Reference(
      OneRow(1, {kNan}, {kNan, 8}, {.sink_logits = {3}, .key_lengths = {0}}));
  EXPECT_THAT(nothing.output, ElementsAre(0, 0));
  EXPECT_THAT(nothing.lse, ElementsAre(3));
}

// Returns which of 4 keys a single row sees. The values of the keys are powers
// of two and all scores are 0, so the output times the number of visible keys
// is the sum of their values.
std::vector<int> Seen(const AttentionOptions& options) {
  const Answer answer =
      Reference(OneRow(0, {1, 1, 1, 1}, {1, 0, 2, 0, 4, 0, 8, 0}, options));
  const double count = std::exp(answer.lse[0]);
  const auto bits = std::lround(answer.output[0] * count);
  std::vector<int> seen;
  for (int j = 0; j < 4; ++j) {
    if ((bits >> j) % 2 == 1) seen.push_back(j);
  }
  return seen;
}

TEST(ReferenceAttentionTest, CausalWindowsOffsetsAndLengthsIntersect) {
  EXPECT_THAT(Seen({}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Seen({.causal = Causal::kTopLeft}), ElementsAre(0));
  EXPECT_THAT(Seen({.causal = Causal::kBottomRight}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Seen({.causal = Causal::kTopLeft, .query_offsets = {2}}),
              ElementsAre(0, 1, 2));
  // An offset means the same with every alignment.
  EXPECT_THAT(Seen({.causal = Causal::kBottomRight, .query_offsets = {1}}),
              ElementsAre(0, 1));
  EXPECT_THAT(Seen({.query_offsets = {1}, .window_left = 0}),
              ElementsAre(1, 2, 3));
  EXPECT_THAT(Seen({.query_offsets = {1}, .window_right = 1}),
              ElementsAre(0, 1, 2));
  EXPECT_THAT(Seen({.query_offsets = {2}, .window_left = 1, .window_right = 0}),
              ElementsAre(1, 2));
  EXPECT_THAT(Seen({.causal = Causal::kBottomRight,
                    .window_left = 1,
                    .window_right = 9}),
              ElementsAre(2, 3));
  EXPECT_THAT(Seen({.key_lengths = {3}}), ElementsAre(0, 1, 2));
  // Bottom-right alignment uses the lengths, so the position of the row is 3 -
  // 1.
  EXPECT_THAT(Seen({.causal = Causal::kBottomRight,
                    .window_left = 0,
                    .key_lengths = {3}}),
              ElementsAre(2));
  EXPECT_THAT(Seen({.query_lengths = {0}}), ElementsAre());
  EXPECT_THAT(Seen({.causal = Causal::kTopLeft, .query_offsets = {-1}}),
              ElementsAre());
  EXPECT_THAT(Seen({.window_left = std::numeric_limits<int64_t>::max(),
                    .window_right = std::numeric_limits<int64_t>::max()}),
              ElementsAre(0, 1, 2, 3));
}

TEST(ReferenceAttentionTest, RaggedEntriesSeeTheirOwnKeys) {
  AttentionCase c({.q_len = 3,
                   .kv_len = 4,
                   .head_dim = 1,
                   .v_head_dim = 1,
                   .rank = 2,
                   .options = {.causal = Causal::kBottomRight,
                               .cu_seqlens_q = {0, 1, 1, 3},
                               .cu_seqlens_k = {0, 2, 2, 4}}},
                  kSeed);
  c.query.Fill(0);
  const float values[] = {1, 2, 10, 20};
  std::copy_n(values, 4, c.value.floats().begin());
  const Answer answer = Reference(c);
  EXPECT_THAT(answer.output,
              ElementsAre(DoubleEq(1.5), DoubleEq(10), DoubleEq(15)));
  EXPECT_THAT(answer.lse,
              ElementsAre(DoubleEq(std::log(2)), 0, DoubleEq(std::log(2))));
}

TEST(ReferenceElementTest, ReadsEveryType) {
  const uint16_t f16[] = {0x3C00, 0xC000, 0x0001, 0x7BFF, 0x7C00, 0x7E00};
  EXPECT_EQ(ReferenceElement(f16, DataType::kF16, 0), 1);
  EXPECT_EQ(ReferenceElement(f16, DataType::kF16, 1), -2);
  EXPECT_EQ(ReferenceElement(f16, DataType::kF16, 2), 0x1p-24);
  EXPECT_EQ(ReferenceElement(f16, DataType::kF16, 3), 65504);
  EXPECT_EQ(ReferenceElement(f16, DataType::kF16, 4), kInfinity);
  EXPECT_THAT(ReferenceElement(f16, DataType::kF16, 5), IsNan());
  const uint16_t bf16[] = {0x3F80, 0xC040, 0x7F80};
  EXPECT_EQ(ReferenceElement(bf16, DataType::kBF16, 0), 1);
  EXPECT_EQ(ReferenceElement(bf16, DataType::kBF16, 1), -3);
  EXPECT_EQ(ReferenceElement(bf16, DataType::kBF16, 2), kInfinity);
}

// The oracle reads what the test support writes: the nearest number, with ties
// to even.
TEST(TypedArrayTest, RoundsToTheNearest) {
  const DataType types[] = {DataType::kF16, DataType::kBF16};
  std::mt19937_64 rng(kSeed);
  std::normal_distribution<float> normal;
  for (const DataType type : types) {
    const double unit = type == DataType::kF16 ? 0x1p-11 : 0x1p-8;
    TypedArray array(type, 2);
    for (int i = 0; i < 1000; ++i) {
      const float x = normal(rng);
      array.Set(0, x);
      ASSERT_LE(std::abs(array[0] - x), unit * std::abs(x)) << "seed " << kSeed;
      const float once = array[0];
      array.Set(0, once);
      ASSERT_EQ(array[0], once) << "seed " << kSeed;
    }
  }
  TypedArray f16(DataType::kF16, 2);
  const std::pair<float, float> cases[] = {{1 + 0x1p-11F, 1},
                                           {1 + 0x3p-11F, 1 + 0x2p-10F},
                                           {0x1p-24F, 0x1p-24F},
                                           {0x1p-25F, 0},
                                           {65519, 65504},
                                           {65520, INFINITY},
                                           {0x1.ff8p-15F, 0x1.ff8p-15F}};
  for (const auto& [from, to] : cases) {
    f16.Set(0, from);
    EXPECT_EQ(f16[0], to);
    f16.Set(0, -from);
    EXPECT_EQ(f16[0], -to);
  }
}

// --- gradients ---------------------------------------------------------------

// Returns the loss whose gradients ReferenceBackward computes.
double Loss(GradientCase& c) {
  const Answer answer = Reference(c.forward);
  double loss = 0;
  for (size_t i = 0; i < answer.output.size(); ++i) {
    loss += answer.output[i] * double{c.grad_output[i]};
  }
  return loss;
}

// The finite differences use steps that f32 represents exactly. They are
// extrapolated from h and 2h, so their error is proportional to h^4. It is near
// 1e-11 with h = 2^-10.
TEST(ReferenceBackwardTest, AgreesWithFiniteDifferencesOnRandomOptions) {
  constexpr float kStep = 0x1p-10F;
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(300); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomGradientCase(rng, 12);
    shape.head_dim = 1 + shape.head_dim % 8;
    shape.v_head_dim = 1 + shape.v_head_dim % 8;
    GradientCase c(shape, rng());
    TypedArray* const tensors[] = {&c.forward.query, &c.forward.key,
                                   &c.forward.value};
    for (TypedArray* tensor : tensors) {
      for (float& x : tensor->floats()) x = std::round(x / kStep) * kStep;
    }
    std::vector<double> gradients[3];
    for (size_t t = 0; t < 3; ++t) {
      gradients[t].resize(static_cast<size_t>(tensors[t]->size()));
    }
    ReferenceBackward(c.forward.problem(), c.buffers(), gradients[0].data(),
                      gradients[1].data(), gradients[2].data());
    for (size_t t = 0; t < 3; ++t) {
      const std::span<float> inputs = tensors[t]->floats();
      for (int probe = 0; probe < 5 && !inputs.empty(); ++probe) {
        const size_t at = rng() % inputs.size();
        const float x = inputs[at];
        const auto slope = [&](float step) {
          inputs[at] = x + step;
          const double above = Loss(c);
          inputs[at] = x - step;
          const double below = Loss(c);
          inputs[at] = x;
          return (above - below) / (2 * double{step});
        };
        const double expected = (4 * slope(kStep) - slope(2 * kStep)) / 3;
        ASSERT_NEAR(gradients[t][at], expected, 1e-8 * (1 + std::abs(expected)))
            << "tensor " << t << " element " << at << " of "
            << c.forward.ToString();
      }
    }
  }
}

TEST(ReferenceBackwardTest, OneKeyHasNoGradientButItsValues) {
  GradientCase c(
      {.head_dim = 2, .v_head_dim = 3, .outputs = {.return_lse = true}}, kSeed);
  std::vector<double> query(2, -7);
  std::vector<double> key(2, -7);
  std::vector<double> value(3, -7);
  ReferenceBackward(c.forward.problem(), c.buffers(), query.data(), key.data(),
                    value.data());
  EXPECT_THAT(query, Each(0));
  EXPECT_THAT(key, Each(0));
  for (size_t d = 0; d < 3; ++d) EXPECT_EQ(value[d], double{c.grad_output[d]});
}

}  // namespace
}  // namespace attnd
