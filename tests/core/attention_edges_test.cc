// Tests calls at the edges that docs/numerics.md defines, on every instruction
// set. Random cases rarely or never reach these edges.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/reference_attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/isas.h"
#include "tests/support/numbers.h"
#include "tests/support/per_isa_engine.h"

namespace attnd {
namespace {

using ::attnd::testing::AttentionCase;
using ::attnd::testing::CaseShape;
using ::attnd::testing::TypedArray;
using ::testing::Each;
using ::testing::IsEmpty;

class AttentionEdgesTest : public testing::PerIsaEngineTest {};

TEST_P(AttentionEdgesTest, AgreesAtEveryHeadDimUpTo80AndAtTheLargest) {
  std::vector<int64_t> dims;
  for (int64_t d = 1; d <= 80; ++d) dims.push_back(d);
  dims.insert(dims.end(), {127, 128, 129, 256, 511, 512, 513, 1024});
  for (const int64_t d : dims) {
    // 13 rows read keys in place, and 101 rows use packed keys.
    for (const int64_t q_len : {13, 101}) {
      AttentionCase c({.q_len = q_len,
                       .kv_len = 70,
                       .head_dim = d,
                       .v_head_dim = d,
                       .outputs = {.return_lse = true}},
                      kSeed);
      Compute(c);
      ASSERT_THAT(c.Compare(), IsEmpty());
    }
  }
}

TEST_P(AttentionEdgesTest, SurvivesScoresOfTenThousand) {
  AttentionCase c({.q_len = 50,
                   .kv_len = 131,
                   .head_dim = 64,
                   .v_head_dim = 64,
                   .options = {.scale = 1.0F},
                   .outputs = {.return_lse = true}},
                  kSeed, 1250);
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
}

TEST_P(AttentionEdgesTest, RowsWithNothingToSeeAreZeroWithLseMinusInfinity) {
  // Bottom-right with more queries than keys: the first rows see nothing.
  AttentionCase c({.q_len = 20,
                   .kv_len = 5,
                   .head_dim = 4,
                   .v_head_dim = 4,
                   .options = {.causal = Causal::kBottomRight},
                   .outputs = {.return_lse = true}},
                  kSeed);
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
  EXPECT_EQ(c.output[0], 0.0F);
  EXPECT_EQ(c.lse[14], -kInfinity);
  EXPECT_TRUE(std::isfinite(c.lse[15]));

  AttentionCase none({.q_len = 7,
                      .kv_len = 0,
                      .head_dim = 4,
                      .v_head_dim = 4,
                      .outputs = {.return_lse = true}},
                     kSeed);
  Compute(none);
  EXPECT_THAT(none.output.floats(), Each(0.0F));
  EXPECT_THAT(none.lse, Each(-kInfinity));
}

TEST_P(AttentionEdgesTest, AllScoresMinusInfinityGiveZero) {
  AttentionCase c({.q_len = 3,
                   .kv_len = 33,
                   .head_dim = 1,
                   .v_head_dim = 5,
                   .options = {.scale = 1.0F},
                   .outputs = {.return_lse = true}},
                  kSeed);
  c.query.Fill(1);
  c.key.Fill(-kInfinity);
  Compute(c);
  EXPECT_THAT(c.output.floats(), Each(0.0F));
  EXPECT_THAT(c.lse, Each(-kInfinity));
}

TEST_P(AttentionEdgesTest, AScoreOfPlusInfinityGivesNanAndLseInfinity) {
  for (const int64_t key : {0, 200, 699}) {
    AttentionCase c({.q_len = 3,
                     .kv_len = 700,
                     .head_dim = 1,
                     .v_head_dim = 5,
                     .outputs = {.return_lse = true}},
                    kSeed);
    c.query.Fill(1);
    c.key.Set(key, kInfinity);
    Compute(c);
    for (const float x : c.output.floats()) EXPECT_TRUE(std::isnan(x));
    EXPECT_THAT(c.lse, Each(kInfinity));
    c.key.Set(300, kNan);
    Compute(c);
    for (const float x : c.lse) EXPECT_TRUE(std::isnan(x));
  }
}

TEST_P(AttentionEdgesTest, TheLargestScaleLeavesAScoreOfZeroAlone) {
  AttentionCase c({.q_len = 2,
                   .kv_len = 9,
                   .head_dim = 3,
                   .v_head_dim = 3,
                   .options = {.scale = std::numeric_limits<float>::max()},
                   .outputs = {.return_lse = true}},
                  kSeed);
  c.query.Fill(0);
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
  // These scores are small, and their scale must stay exact.
  c.query.Set(0, 1e-38F);
  c.query.Set(4, 2e-38F);
  for (int64_t at = 0; at < c.key.size(); ++at) {
    c.key.Set(at, static_cast<float>(at / 3 % 3));
  }
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
}

TEST_P(AttentionEdgesTest, ScoresOfAnySizeKeepTheWeightsOfTheLargest) {
  for (const float score : {1e8F, 1e10F, 1e12F, 1e16F, 1e30F, -1e30F}) {
    AttentionCase c({.q_len = 1,
                     .kv_len = 600,
                     .head_dim = 1,
                     .v_head_dim = 2,
                     .options = {.scale = 1.0F},
                     .outputs = {.return_lse = true}},
                    kSeed);
    c.query.Set(0, 1);
    c.key.Fill(score);
    c.key.Set(599, score / 2);  // far below or above the others
    Compute(c);
    // The bound is loose at such magnitudes. Each weight is 0 or equal to the
    // others, so the expected output can be compared directly.
    double expected[2];
    double lse = 0;
    ReferenceAttentionRow(c.problem(), c.buffers(), 0, 0, 0, expected, &lse);
    EXPECT_NEAR(c.output[0], expected[0], 1e-5) << score;
    EXPECT_NEAR(c.output[1], expected[1], 1e-5) << score;
    EXPECT_FLOAT_EQ(c.lse[0], static_cast<float>(lse)) << score;
  }
}

TEST_P(AttentionEdgesTest, ASoftCapMakesInfiniteScoresFinite) {
  for (const int64_t q_len : {1, 40}) {
    AttentionCase c({.q_len = q_len,
                     .kv_len = 100,
                     .head_dim = 1,
                     .v_head_dim = 3,
                     .options = {.logits_soft_cap = 3.0F},
                     .outputs = {.return_lse = true}},
                    kSeed);
    c.query.Fill(1);
    c.key.Set(5, kInfinity);
    c.key.Set(70, -kInfinity);
    c.key.Set(71, 1e30F);
    Compute(c);
    // All magnitudes in the bound are infinite, but the capped scores are 3 and
    // -3.
    std::vector<double> expected(3);
    double lse = 0;
    ReferenceAttentionRow(c.problem(), c.buffers(), 0, 0, 0, expected.data(),
                          &lse);
    for (int64_t d = 0; d < 3; ++d) {
      EXPECT_NEAR(c.output[d], expected[static_cast<size_t>(d)], 1e-6);
    }
    EXPECT_NEAR(c.lse[0], lse, 1e-6);
  }
}

// tanh must keep its relative accuracy for small arguments, where it is nearly
// linear.
TEST_P(AttentionEdgesTest, ALargeSoftCapLeavesSmallScoresAlone) {
  for (const float cap : {100.0F, 1e6F, 1e30F}) {
    AttentionCase c({.q_len = 9,
                     .kv_len = 90,
                     .head_dim = 16,
                     .v_head_dim = 8,
                     .options = {.logits_soft_cap = cap},
                     .outputs = {.return_lse = true}},
                    kSeed);
    Compute(c);
    EXPECT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(AttentionEdgesTest, TheLowestFiniteBiasHidesNothing) {
  for (const DataType type :
       {DataType::kF32, DataType::kF16, DataType::kBF16}) {
    AttentionCase c(
        {.q_len = 3,
         .kv_len = 70,
         .head_dim = 8,
         .v_head_dim = 2,
         .options = {.bias = TensorSpec{.dtype = type, .shape = {3, 70}}}},
        kSeed);
    const float lowest = type == DataType::kF32   ? -0x1.fffffep127F
                         : type == DataType::kF16 ? -65504.0F
                                                  : -0x1.fep127F;
    c.bias.Fill(lowest);
    // With queries of 0, every score is the bias, and the output is the mean of
    // the values.
    c.query.Fill(0);
    c.bias.Set(70 + 9, 1);
    Compute(c);
    EXPECT_THAT(c.Compare(), IsEmpty()) << static_cast<int>(type);
    // In row 1, one key has a much larger bias than all others.
    EXPECT_EQ(c.output[2], c.value[9 * 2]);
  }
}

TEST_P(AttentionEdgesTest, ABiasOfPlusInfinityOrNanFollowsTheFormula) {
  for (const float bad : {kInfinity, kNan}) {
    AttentionCase c({.q_len = 3,
                     .kv_len = 70,
                     .head_dim = 8,
                     .v_head_dim = 2,
                     .options = {.bias = TensorSpec{.shape = {3, 70}}},
                     .outputs = {.return_lse = true}},
                    kSeed);
    c.bias.Set(70 + 64, bad);  // of row 1
    Compute(c);
    EXPECT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(AttentionEdgesTest, AnOutputBeyondF16IsInfinite) {
  AttentionCase c({.q_len = 1,
                   .kv_len = 1,
                   .head_dim = 4,
                   .v_head_dim = 6,
                   .outputs = {.output_dtype = DataType::kF16}},
                  kSeed);
  const float values[] = {65504, 65519, 65520, -1e30F, 0x1p-24F, 0x1p-26F};
  const float expected[] = {65504, 65504, kInfinity, -kInfinity, 0x1p-24F, 0};
  for (int64_t d = 0; d < 6; ++d) c.value.Set(d, values[d]);
  Compute(c);
  for (int64_t d = 0; d < 6; ++d) EXPECT_EQ(c.output[d], expected[d]) << d;
}

// With only one visible key, every number of a type passes through unchanged.
TEST_P(AttentionEdgesTest, ConvertsEveryNumberOfF16AndBF16) {
  for (const DataType type : {DataType::kF16, DataType::kBF16}) {
    for (const DataType output : {DataType::kF32, type}) {
      constexpr int64_t kWide = 1024;
      AttentionCase c({.batch = 64,
                       .head_dim = 1,
                       .v_head_dim = kWide,
                       .value_dtype = type,
                       .options = {.precision = Precision::kF32},
                       .outputs = {.output_dtype = output}},
                      kSeed);
      auto* const bits = reinterpret_cast<uint16_t*>(c.value.data());
      for (int64_t i = 0; i < 64 * kWide; ++i) {
        bits[i] = static_cast<uint16_t>(i);
      }
      Compute(c);
      for (int64_t i = 0; i < 64 * kWide; ++i) {
        const float value = c.value[i];
        const float got = c.output[i];
        ASSERT_TRUE(std::isnan(value) ? std::isnan(got) : got == value)
            << "bits " << i << " are " << value << ", came out as " << got;
      }
    }
  }
}

TEST_P(AttentionEdgesTest, ASinkFarAboveOrBelowAllScores) {
  for (const float sink : {-1e30F, -200.0F, 200.0F, 1e30F}) {
    AttentionCase c({.q_len = 5,
                     .kv_len = 70,
                     .head_dim = 8,
                     .v_head_dim = 2,
                     .options = {.sink_logits = {sink}},
                     .outputs = {.return_lse = true}},
                    kSeed);
    Compute(c);
    EXPECT_THAT(c.Compare(), IsEmpty()) << sink;
  }
}

// These are enough rows for products of bf16 parts, if the machine has them.

constexpr CaseShape kManyRows = {
    .q_len = 200, .kv_len = 300, .head_dim = 24, .v_head_dim = 40};

// The parts of small numbers are even smaller, and a tile register treats
// denormal numbers as 0. Hidden keys and values of another size must change
// nothing.
TEST_P(AttentionEdgesTest, NumbersOfAnySizeKeepTheirPrecision) {
  for (const float size :
       {1e-40F, 1e-37F, 1e-33F, 1e-30F, 1e-25F, 1e-20F, 1e-10F, 1e10F, 1e16F}) {
    for (const bool values : {true, false}) {
      CaseShape shape = kManyRows;
      shape.options.mask = TensorSpec{DataType::kBool, {shape.kv_len}};
      // So that scores are near 1 whatever the keys' size.
      if (!values) shape.options.scale = std::min(0.1F / size, 1e38F);
      AttentionCase c(shape, kSeed);
      TypedArray& tensor = values ? c.value : c.key;
      double largest = 0;
      for (int64_t at = 0; at < tensor.size(); ++at) {
        tensor.Set(at, tensor[at] * size);
      }
      std::fill(c.mask.begin(), c.mask.end(), std::byte{1});
      c.mask[7] = std::byte{0};
      for (int64_t d = 0; d < shape.head_dim; ++d) {
        tensor.Set(7 * tensor.size() / shape.kv_len + d, 1);
      }
      Compute(c);
      const AttentionCase::Expected expected = c.Expect();
      for (const double x : expected.output) {
        largest = std::max(largest, std::abs(x));
      }
      // The outputs are sums of 300 numbers that can be denormal and then have
      // few bits.
      const double bound = 3e-6 * largest + 300 * 0x1p-149;
      for (int64_t at = 0; at < c.output.size(); ++at) {
        ASSERT_NEAR(c.output[at], expected.output[static_cast<size_t>(at)],
                    bound)
            << (values ? "values of " : "keys of ") << size;
      }
    }
  }
}

// The products of tiny keys and large queries have normal sizes.
TEST_P(AttentionEdgesTest, TinyKeysMeetLargeQueriesAndTheOtherWayRound) {
  for (const float size : {1e-36F, 1e36F}) {
    CaseShape shape = kManyRows;
    shape.outputs.return_lse = true;
    AttentionCase c(shape, kSeed);
    for (int64_t at = 0; at < c.key.size(); ++at) {
      c.key.Set(at, c.key[at] * size);
    }
    for (int64_t at = 0; at < c.query.size(); ++at) {
      c.query.Set(at, c.query[at] / size);
    }
    Compute(c);
    EXPECT_THAT(c.Compare(), IsEmpty()) << size;
  }
}

// Only the numbers that a row sees may decide how the kernel computes it.
TEST_P(AttentionEdgesTest, WhatIsHiddenChangesNoBitWhateverItsSize) {
  constexpr int64_t kLast = 127;
  CaseShape shape = kManyRows;
  shape.q_len = shape.kv_len = kLast + 1;
  shape.options.causal = Causal::kTopLeft;
  for (const float size : {1.0F, 1e-20F, 1e-26F, 1e-36F, 1e16F}) {
    AttentionCase c(shape, kSeed);
    for (TypedArray* const tensor : {&c.key, &c.value}) {
      for (int64_t at = 0; at < tensor->size(); ++at) {
        tensor->Set(at, (*tensor)[at] * size);
      }
    }
    Compute(c);
    const TypedArray clean = c.output;
    // Checks all rows except the last one, which is the only row that sees the
    // last key.
    const auto expect_clean = [&](float other) {
      Compute(c);
      for (int64_t at = 0; at < kLast * shape.v_head_dim; ++at) {
        ASSERT_EQ(c.output[at], clean[at]) << size << " beside " << other;
      }
    };
    for (const float other :
         {0.0F, 1.0F, 1e-20F, 1e-36F, 1e-41F, 1e16F, 1e36F, kInfinity, kNan}) {
      c.key.Set(kLast * shape.head_dim + 1, other);
      expect_clean(other);
      c.value.Set(kLast * shape.v_head_dim + 3, other);
      expect_clean(other);
      c.query.Set(kLast * shape.head_dim + 2, other);
      expect_clean(other);
    }
  }
}

TEST_P(AttentionEdgesTest, WeightsFarApartAreTheOracles) {
  CaseShape shape = kManyRows;
  shape.options = {.scale = 30.0F};
  shape.outputs = {.return_lse = true};
  AttentionCase c(shape, kSeed);
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
}

TEST_P(AttentionEdgesTest, AnInfiniteValueReachesItsColumnAlone) {
  AttentionCase clean(kManyRows, kSeed);
  const int64_t dims = clean.shape().v_head_dim;
  Compute(clean);
  for (const float bad : {kInfinity, -kInfinity, kNan}) {
    AttentionCase c(kManyRows, kSeed);
    c.value.Set(250 * dims + 3, bad);
    Compute(c);
    for (int64_t at = 0; at < c.output.size(); ++at) {
      if (at % dims != 3) {
        ASSERT_EQ(c.output[at], clean.output[at]) << at;
      } else if (std::isnan(bad)) {
        ASSERT_TRUE(std::isnan(c.output[at])) << at;
      } else {
        ASSERT_EQ(c.output[at], bad) << at;
      }
    }
  }
}

TEST_P(AttentionEdgesTest, AnInfiniteKeyOrQueryFollowsTheFormula) {
  for (const bool in_key : {true, false}) {
    for (const float bad : {kInfinity, -kInfinity, kNan}) {
      CaseShape shape = kManyRows;
      shape.outputs.return_lse = true;
      AttentionCase c(shape, kSeed);
      (in_key ? c.key : c.query).Set(150 * shape.head_dim + 2, bad);
      Compute(c);
      EXPECT_THAT(c.Compare(), IsEmpty()) << in_key << " " << bad;
    }
  }
}

TEST_P(AttentionEdgesTest, ProductsBeyondF32FollowTheFormula) {
  CaseShape shape = kManyRows;
  shape.head_dim = 1;
  shape.outputs.return_lse = true;
  AttentionCase c(shape, kSeed);
  for (int64_t at = 0; at < c.key.size(); ++at) {
    c.key.Set(at, at % 7 == 0 ? -1e30F : -1e-3F * static_cast<float>(at));
  }
  c.query.Fill(1e20F);
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(PerIsa, AttentionEdgesTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

}  // namespace
}  // namespace attnd
