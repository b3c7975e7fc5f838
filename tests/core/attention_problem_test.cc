#include "core/attention_problem.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/field_error.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Shape = std::vector<int64_t>;

absl::StatusOr<AttentionProblem> Create(const Shape& query, const Shape& key,
                                        const Shape& value,
                                        const AttentionOptions& options = {},
                                        const OutputOptions& outputs = {}) {
  return AttentionProblem::Create({.shape = query}, {.shape = key},
                                  {.shape = value}, options, outputs);
}

void ExpectRefused(const absl::StatusOr<AttentionProblem>& problem,
                   const std::string& field, const std::string& expected,
                   const std::string& got) {
  ASSERT_FALSE(problem.ok());
  const absl::Status& status = problem.status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FieldOf(status), field) << status;
  EXPECT_EQ(std::string(status.message()),
            field + ": expected " + expected + ", got " + got);
}

TEST(AttentionProblemTest, ResolvesShapesOfRank4) {
  const auto problem =
      Create({2, 8, 5, 64}, {2, 2, 7, 64}, {2, 2, 7, 32},
             {.causal = Causal::kTopLeft}, {.return_lse = true});
  ASSERT_TRUE(problem.ok()) << problem.status();
  const AttentionParams& params = problem->params();
  EXPECT_EQ(params.batch, 2);
  EXPECT_EQ(params.num_q_heads, 8);
  EXPECT_EQ(params.num_kv_heads, 2);
  EXPECT_EQ(params.HeadsPerGroup(), 4);
  EXPECT_EQ(params.q_len, 5);
  EXPECT_EQ(params.kv_len, 7);
  EXPECT_EQ(params.head_dim, 64);
  EXPECT_EQ(params.v_head_dim, 32);
  EXPECT_EQ(params.causal, Causal::kTopLeft);
  EXPECT_TRUE(params.return_lse);
  EXPECT_THAT(problem->OutputShape(), ElementsAre(2, 8, 5, 32));
  EXPECT_THAT(problem->LseShape(), ElementsAre(2, 8, 5));
  EXPECT_EQ(problem->query_bytes(), 2 * 8 * 5 * 64 * 4);
  EXPECT_EQ(problem->key_bytes(), 2 * 2 * 7 * 64 * 4);
  EXPECT_EQ(problem->value_bytes(), 2 * 2 * 7 * 32 * 4);
  EXPECT_EQ(problem->output_bytes(), 2 * 8 * 5 * 32 * 4);
  EXPECT_EQ(problem->lse_bytes(), 2 * 8 * 5 * 4);
}

TEST(AttentionProblemTest, AnswersInTheRankOfTheQuery) {
  const auto rank3 = Create({8, 5, 64}, {2, 7, 64}, {2, 7, 32});
  ASSERT_TRUE(rank3.ok()) << rank3.status();
  EXPECT_EQ(rank3->params().batch, 1);
  EXPECT_EQ(rank3->params().num_q_heads, 8);
  EXPECT_THAT(rank3->OutputShape(), ElementsAre(8, 5, 32));
  EXPECT_THAT(rank3->LseShape(), ElementsAre(8, 5));

  const auto rank2 = Create({5, 64}, {7, 64}, {7, 32});
  ASSERT_TRUE(rank2.ok()) << rank2.status();
  EXPECT_EQ(rank2->params().num_kv_heads, 1);
  EXPECT_THAT(rank2->OutputShape(), ElementsAre(5, 32));
  EXPECT_THAT(rank2->LseShape(), ElementsAre(5));
}

TEST(AttentionProblemTest, ViewsAreDenseInShapeOrder) {
  const auto problem = Create({2, 4, 5, 6}, {2, 2, 7, 6}, {2, 2, 7, 3});
  ASSERT_TRUE(problem.ok()) << problem.status();
  const std::vector<float> data(1000);
  const float* base = data.data();
  EXPECT_EQ(problem->QueryView(base).Row(1, 2, 3),
            base + ((4 + 2) * 5 + 3) * 6);
  EXPECT_EQ(problem->KeyView(base).Row(1, 1, 3), base + ((2 + 1) * 7 + 3) * 6);
  EXPECT_EQ(problem->ValueView(base).Row(1, 1, 3),
            base + ((2 + 1) * 7 + 3) * 3);
  std::vector<float> out(1000);
  EXPECT_EQ(problem->OutputView(out.data()).Row(1, 2, 3),
            out.data() + ((4 + 2) * 5 + 3) * 3);
  EXPECT_EQ(problem->LseView(out.data()).Row(1, 2, 3),
            out.data() + (4 + 2) * 5 + 3);
}

TEST(AttentionProblemTest, LetsEmptyAxesThrough) {
  EXPECT_TRUE(Create({0, 4, 5, 6}, {0, 2, 7, 6}, {0, 2, 7, 6}).ok());
  EXPECT_TRUE(Create({2, 0, 5, 6}, {2, 0, 7, 6}, {2, 0, 7, 6}).ok());
  EXPECT_TRUE(Create({2, 0, 5, 6}, {2, 2, 7, 6}, {2, 2, 7, 6}).ok());
  EXPECT_TRUE(Create({2, 4, 0, 6}, {2, 2, 7, 6}, {2, 2, 7, 6}).ok());
  const auto no_keys = Create({2, 4, 5, 6}, {2, 2, 0, 6}, {2, 2, 0, 6});
  ASSERT_TRUE(no_keys.ok()) << no_keys.status();
  EXPECT_EQ(no_keys->key_bytes(), 0);
  EXPECT_EQ(no_keys->output_bytes(), 2 * 4 * 5 * 6 * 4);
}

TEST(AttentionProblemTest, RefusesRanksBeyond2To4) {
  ExpectRefused(Create({}, {1, 1}, {1, 1}), "query.shape", "rank 4, 3 or 2",
                "rank 0");
  ExpectRefused(Create({1}, {1}, {1}), "query.shape", "rank 4, 3 or 2",
                "rank 1");
  ExpectRefused(Create({1, 1, 1, 1, 1}, {1, 1}, {1, 1}), "query.shape",
                "rank 4, 3 or 2", "rank 5");
}

TEST(AttentionProblemTest, RefusesMixedRanks) {
  ExpectRefused(Create({1, 5, 6}, {1, 1, 5, 6}, {1, 5, 6}), "key.shape",
                "the query's rank, 3", "rank 4");
  ExpectRefused(Create({1, 5, 6}, {1, 5, 6}, {5, 6}), "value.shape",
                "the query's rank, 3", "rank 2");
  ExpectRefused(Create({1, 5, 6}, {}, {5, 6}), "key.shape",
                "the query's rank, 3", "rank 0");
}

TEST(AttentionProblemTest, RefusesNegativeExtentsByTheSendersAxis) {
  ExpectRefused(Create({1, 1, -5, 6}, {1, 1, 5, 6}, {1, 1, 5, 6}),
                "query.shape[2]", "an extent >= 0", "-5");
  ExpectRefused(Create({5, 6}, {-1, 6}, {5, 6}), "key.shape[0]",
                "an extent >= 0", "-1");
  ExpectRefused(
      Create({1, 5, 6}, {1, 5, 6}, {std::numeric_limits<int64_t>::min(), 5, 6}),
      "value.shape[0]", "an extent >= 0", "-9223372036854775808");
}

TEST(AttentionProblemTest, RefusesHeadDimsBeyondItsBounds) {
  ExpectRefused(Create({5, 0}, {5, 0}, {5, 6}), "query.shape[1]", "1 to 1024",
                "0");
  ExpectRefused(Create({5, 1025}, {5, 1025}, {5, 6}), "query.shape[1]",
                "1 to 1024", "1025");
  ExpectRefused(Create({5, 6}, {5, 6}, {5, 0}), "value.shape[1]", "1 to 1024",
                "0");
  ExpectRefused(Create({1, 1, 5, 6}, {1, 1, 5, 6}, {1, 1, 5, 1025}),
                "value.shape[3]", "1 to 1024", "1025");
  EXPECT_TRUE(Create({5, 1024}, {5, 1024}, {5, 1024}).ok());
  EXPECT_TRUE(Create({5, 1}, {5, 1}, {5, 1}).ok());
}

TEST(AttentionProblemTest, RefusesAxesThatDisagree) {
  ExpectRefused(Create({2, 4, 5, 6}, {3, 2, 7, 6}, {3, 2, 7, 6}),
                "key.shape[0]", "2 (batch of query)", "3");
  ExpectRefused(Create({2, 4, 5, 6}, {2, 2, 7, 8}, {2, 2, 7, 6}),
                "key.shape[3]", "6 (head_dim of query)", "8");
  ExpectRefused(Create({2, 4, 5, 6}, {2, 2, 7, 6}, {1, 2, 7, 6}),
                "value.shape[0]", "2 (batch of key)", "1");
  ExpectRefused(Create({4, 5, 6}, {2, 7, 6}, {4, 7, 6}), "value.shape[0]",
                "2 (kv heads of key)", "4");
  ExpectRefused(Create({5, 6}, {7, 6}, {8, 6}), "value.shape[0]",
                "7 (kv_len of key)", "8");
}

TEST(AttentionProblemTest, RefusesQHeadsThatKvHeadsDoNotDivide) {
  ExpectRefused(Create({1, 8, 5, 6}, {1, 3, 7, 6}, {1, 3, 7, 6}),
                "query.shape[1]", "a multiple of the 3 kv heads", "8");
  ExpectRefused(Create({2, 5, 6}, {4, 7, 6}, {4, 7, 6}), "query.shape[0]",
                "a multiple of the 4 kv heads", "2");
  ExpectRefused(Create({2, 5, 6}, {0, 7, 6}, {0, 7, 6}), "query.shape[0]",
                "a multiple of the 0 kv heads", "2");
}

TEST(AttentionProblemTest, RefusesSizesThatNoCountFits) {
  const auto refused_as_too_large = [](const Shape& query, const Shape& key,
                                       const std::string& field) {
    const auto problem = Create(query, key, key);
    ASSERT_FALSE(problem.ok());
    EXPECT_EQ(FieldOf(problem.status()), field) << problem.status();
    EXPECT_EQ(ReasonOf(problem.status()), kInt64RangeReason);
  };
  refused_as_too_large({1, 1, kMax, 64}, {1, 1, 1, 64}, "query.shape");
  refused_as_too_large({1, 1, 1, 64}, {1, 1, kMax, 64}, "key.shape");
  refused_as_too_large({kMax, 1, 1, 1}, {kMax, 1, 1, 1}, "query.shape");
  // Each tensor fits, but their scores do not.
  refused_as_too_large({1, 1, int64_t{1} << 40, 64},
                       {1, 1, int64_t{1} << 40, 64}, "key.shape");
  // These tensors have no element, but their strides overflow.
  refused_as_too_large({0, kMax, kMax, 64}, {0, kMax, kMax, 64}, "query.shape");
  refused_as_too_large({kMax, 1, 0, 64}, {kMax, 1, 0, 64}, "query.shape");
}

// For every problem that Create accepts, the largest product of its numbers
// must stay within the bound that later sums rely on.
TEST(AttentionProblemTest, WhateverIsLetThroughFitsAnInt64) {
  __extension__ using Wide = __int128;
  std::mt19937_64 rng(kSeed);
  int accepted = 0;
  for (int i = 0; i < 5000; ++i) {
    const auto extent = [&](unsigned bits) {
      return static_cast<int64_t>(rng() >> (64 - 1 - rng() % bits));
    };
    const int64_t batch = extent(30);
    const int64_t kv_heads = 1 + extent(10);
    const int64_t q_heads = kv_heads * extent(6);
    const int64_t q_len = extent(62);
    const int64_t kv_len = extent(62);
    const int64_t dim = 1 + extent(9);
    const auto problem =
        Create({batch, q_heads, q_len, dim}, {batch, kv_heads, kv_len, dim},
               {batch, kv_heads, kv_len, dim});
    if (!problem.ok()) {
      ASSERT_EQ(ReasonOf(problem.status()), kInt64RangeReason)
          << problem.status() << " seed " << kSeed;
      continue;
    }
    ++accepted;
    const Wide q_bytes = Wide{batch} * q_heads * q_len * dim * 4;
    ASSERT_TRUE(q_bytes == problem->query_bytes()) << "seed " << kSeed;
    const Wide work =
        Wide{batch} * q_heads * q_len * std::max<int64_t>(kv_len, 1) * dim * 8;
    ASSERT_TRUE(work <= AttentionProblem::kMaxWork) << "seed " << kSeed;
  }
  EXPECT_GT(accepted, 100);
}

// The same numbers as above, but all are accepted and saturate.
TEST(AttentionProblemTest, AnySizeIsAcceptedForEstimates) {
  const auto of_any_size = [](const Shape& query, const Shape& key,
                              const AttentionOptions& options = {}) {
    return AttentionProblem::CreateOfAnySize({.shape = query}, {.shape = key},
                                             {.shape = key}, options);
  };
  const auto rows = of_any_size({1, 1, kMax, 64}, {1, 1, 1, 64});
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_FALSE(rows->computable());
  EXPECT_EQ(rows->query_bytes(), kMax);
  EXPECT_EQ(rows->key_bytes(), 64 * 4);
  const auto work =
      of_any_size({1, 1, int64_t{1} << 40, 64}, {1, 1, int64_t{1} << 40, 64});
  ASSERT_TRUE(work.ok()) << work.status();
  EXPECT_FALSE(work->computable());
  EXPECT_EQ(work->query_bytes(), int64_t{1} << 48);
  EXPECT_FALSE(
      of_any_size({0, kMax, kMax, 64}, {0, kMax, kMax, 64})->computable());
  EXPECT_TRUE(of_any_size({5, 6}, {7, 6})->computable());
  EXPECT_TRUE(Create({5, 6}, {7, 6}, {7, 6})->computable());
  const auto biased = of_any_size({1, 1, kMax, 64}, {1, 1, kMax, 64},
                                  {.bias = TensorSpec{.shape = {kMax, kMax}}});
  ASSERT_TRUE(biased.ok()) << biased.status();
  EXPECT_EQ(biased->bias_bytes(), kMax);
  // What is wrong with a problem apart from its size is refused as ever.
  EXPECT_FALSE(of_any_size({1, 3, kMax, 64}, {1, 2, 1, 64}).ok());
  EXPECT_FALSE(of_any_size({1, 1, -1, 64}, {1, 1, 1, 64}).ok());
  EXPECT_FALSE(
      of_any_size({1, 1, kMax, 64}, {1, 1, 1, 64}, {.window_left = -1}).ok());
}

TEST(AttentionProblemTest, ScaleDefaultsToOneOverTheRootOfHeadDim) {
  EXPECT_FLOAT_EQ(Create({5, 64}, {5, 64}, {5, 8})->params().score_scale,
                  0.125F);
  EXPECT_FLOAT_EQ(Create({5, 3}, {5, 3}, {5, 8})->params().score_scale,
                  static_cast<float>(1 / std::sqrt(3.0)));
}

TEST(AttentionProblemTest, TemperatureDividesTheScale) {
  const auto scale = [](const AttentionOptions& options) {
    return Create({5, 64}, {5, 64}, {5, 8}, options)->params().score_scale;
  };
  EXPECT_FLOAT_EQ(scale({.temperature = 2.0F}), 0.0625F);
  EXPECT_FLOAT_EQ(scale({.scale = 3.0F}), 3.0F);
  EXPECT_FLOAT_EQ(scale({.scale = 3.0F, .temperature = 2.0F}), 1.5F);
  EXPECT_FLOAT_EQ(scale({.scale = 0.0F}), 0.0F);
  EXPECT_FLOAT_EQ(scale({.scale = -1.0F}), -1.0F);
}

TEST(AttentionProblemTest, RefusesOptionsOutOfRange) {
  const auto create = [](const AttentionOptions& options) {
    return Create({5, 64}, {5, 64}, {5, 8}, options);
  };
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    EXPECT_EQ(FieldOf(create({.scale = bad}).status()), "options.scale");
    EXPECT_EQ(FieldOf(create({.temperature = bad}).status()),
              "options.temperature");
  }
  ExpectRefused(create({.temperature = 0.0F}), "options.temperature",
                "a finite number > 0", "0");
  ExpectRefused(create({.temperature = -1.0F}), "options.temperature",
                "a finite number > 0", "-1");
  ExpectRefused(create({.block_size = -64}), "options.block_size",
                "a number >= 0", "-64");
}

TEST(AttentionProblemTest,
     RefusesAQuotientOfScaleAndTemperatureThatIsInfinite) {
  const auto status = [](const AttentionOptions& options) {
    return Create({5, 64}, {5, 64}, {5, 8}, options).status();
  };
  const absl::Status both = status({.scale = 1e30F, .temperature = 1e-30F});
  EXPECT_EQ(FieldOf(both), "options.scale");
  EXPECT_THAT(std::string(both.message()), HasSubstr("1e+30 / 1e-30"));
  // If the caller set no scale, it has to change the temperature.
  EXPECT_EQ(FieldOf(status({.temperature = 1e-40F})), "options.temperature");
}

// --- options -----------------------------------------------------------------

// A problem of 2 entries, 4 query heads over 2, 5 rows and 7 keys.
absl::StatusOr<AttentionProblem> WithOptions(
    const AttentionOptions& options, const OutputOptions& outputs = {}) {
  return Create({2, 4, 5, 6}, {2, 2, 7, 6}, {2, 2, 7, 3}, options, outputs);
}

TEST(AttentionProblemTest, TypesDefaultToTheQuerys) {
  const auto problem =
      AttentionProblem::Create({.dtype = DataType::kBF16, .shape = {5, 6}},
                               {.dtype = DataType::kF16, .shape = {7, 6}},
                               {.dtype = DataType::kF32, .shape = {7, 3}}, {});
  ASSERT_TRUE(problem.ok()) << problem.status();
  EXPECT_EQ(problem->params().query_dtype, DataType::kBF16);
  EXPECT_EQ(problem->params().key_dtype, DataType::kF16);
  EXPECT_EQ(problem->params().value_dtype, DataType::kF32);
  EXPECT_EQ(problem->params().output_dtype, DataType::kBF16);
  EXPECT_EQ(problem->query_bytes(), 5 * 6 * 2);
  EXPECT_EQ(problem->key_bytes(), 7 * 6 * 2);
  EXPECT_EQ(problem->value_bytes(), 7 * 3 * 4);
  EXPECT_EQ(problem->output_bytes(), 5 * 3 * 2);
  EXPECT_EQ(problem->lse_bytes(), 5 * 4);
  EXPECT_EQ(WithOptions({}, {.output_dtype = DataType::kF16})->output_bytes(),
            2 * 4 * 5 * 3 * 2);
}

TEST(AttentionProblemTest, RefusesBoolButForAMask) {
  const TensorSpec floats{.shape = {5, 6}};
  const TensorSpec bools{.dtype = DataType::kBool, .shape = {5, 6}};
  const std::string expected = "F32, F16 or BF16";
  ExpectRefused(AttentionProblem::Create(bools, floats, floats, {}),
                "query.dtype", expected, "BOOL");
  ExpectRefused(AttentionProblem::Create(floats, bools, floats, {}),
                "key.dtype", expected, "BOOL");
  ExpectRefused(AttentionProblem::Create(floats, floats, bools, {}),
                "value.dtype", expected, "BOOL");
  ExpectRefused(WithOptions({.bias = TensorSpec{DataType::kBool, {7}}}),
                "options.bias.dtype", expected, "BOOL");
  ExpectRefused(WithOptions({}, {.output_dtype = DataType::kBool}),
                "options.output_dtype", expected, "BOOL");
  ExpectRefused(WithOptions({.mask = TensorSpec{DataType::kF16, {7}}}),
                "options.mask.dtype", "BOOL", "F16");
}

TEST(AttentionProblemTest, GradientsNeedF32) {
  const auto check = [](DataType query, DataType key, DataType value,
                        const AttentionOptions& options = {},
                        const OutputOptions& outputs = {}) {
    const auto problem = AttentionProblem::Create(
        {.dtype = query, .shape = {5, 6}}, {.dtype = key, .shape = {7, 6}},
        {.dtype = value, .shape = {7, 3}}, options, outputs);
    EXPECT_TRUE(problem.ok()) << problem.status();
    return problem->CheckGradients();
  };
  const DataType f32 = DataType::kF32;
  const DataType f16 = DataType::kF16;
  EXPECT_TRUE(check(f32, f32, f32).ok());
  EXPECT_TRUE(check(f32, f32, f32, {.precision = Precision::kF32}).ok());
  const std::pair<absl::Status, std::string> refused[] = {
      {check(f16, f32, f32), "query.dtype"},
      {check(f32, f16, f32), "key.dtype"},
      {check(f32, f32, f16), "value.dtype"},
      {check(f32, f32, f32, {}, {.output_dtype = f16}), "options.output_dtype"},
      {check(f32, f32, f32, {.precision = Precision::kBF16}),
       "options.precision"}};
  for (const auto& [status, field] : refused) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_EQ(FieldOf(status), field) << status;
  }
}

TEST(AttentionProblemTest, BshdSwapsHeadsAndLengths) {
  const AttentionOptions bshd = {.layout = Layout::kBshd};
  const auto problem = Create({2, 5, 4, 6}, {2, 7, 2, 6}, {2, 7, 2, 3}, bshd);
  ASSERT_TRUE(problem.ok()) << problem.status();
  EXPECT_EQ(problem->params().num_q_heads, 4);
  EXPECT_EQ(problem->params().num_kv_heads, 2);
  EXPECT_EQ(problem->params().q_len, 5);
  EXPECT_EQ(problem->params().kv_len, 7);
  EXPECT_THAT(problem->OutputShape(), ElementsAre(2, 5, 4, 3));
  EXPECT_THAT(problem->LseShape(), ElementsAre(2, 4, 5));
  const std::vector<float> data(2000);
  const float* base = data.data();
  EXPECT_EQ(problem->QueryView(base).Row(1, 2, 3),
            base + ((5 + 3) * 4 + 2) * 6);
  EXPECT_EQ(problem->ValueView(base).Row(1, 1, 3),
            base + ((7 + 3) * 2 + 1) * 3);

  const auto rank3 = Create({5, 4, 6}, {7, 2, 6}, {7, 2, 3}, bshd);
  ASSERT_TRUE(rank3.ok()) << rank3.status();
  EXPECT_THAT(rank3->OutputShape(), ElementsAre(5, 4, 3));
  EXPECT_THAT(rank3->LseShape(), ElementsAre(4, 5));
  const auto rank2 = Create({5, 6}, {7, 6}, {7, 3}, bshd);
  ASSERT_TRUE(rank2.ok()) << rank2.status();
  EXPECT_EQ(rank2->params().q_len, 5);

  // Errors number the axes in the order in which the caller sent them.
  ExpectRefused(Create({2, 5, 4, 6}, {2, 7, 3, 6}, {2, 7, 3, 6}, bshd),
                "query.shape[2]", "a multiple of the 3 kv heads", "4");
  ExpectRefused(Create({5, 4, 6}, {7, 2, 6}, {8, 2, 6}, bshd), "value.shape[0]",
                "7 (kv_len of key)", "8");
}

TEST(AttentionProblemTest, BroadcastAxesHaveNoStride) {
  const auto problem = WithOptions(
      {.bias = TensorSpec{.dtype = DataType::kF16, .shape = {4, 1, 7}},
       .mask = TensorSpec{DataType::kBool, {2, 1, 5, 1}}});
  ASSERT_TRUE(problem.ok()) << problem.status();
  EXPECT_TRUE(problem->params().has_bias);
  EXPECT_TRUE(problem->params().has_mask);
  EXPECT_EQ(problem->params().bias_dtype, DataType::kF16);
  EXPECT_EQ(problem->bias_bytes(), 4 * 7 * 2);
  EXPECT_EQ(problem->mask_bytes(), 2 * 5);
  const std::vector<std::byte> data(100);
  const auto bias = problem->BiasView(data.data());
  EXPECT_EQ(bias.Offset(1, 2, 3), 2 * 7);
  EXPECT_EQ(bias.strides[3], 1);
  const auto mask = problem->MaskView(data.data());
  EXPECT_EQ(mask.Offset(1, 2, 3), 5 + 3);
  EXPECT_EQ(mask.strides[3], 0);
  // Right-aligned, down to a scalar; of every element at most.
  EXPECT_TRUE(WithOptions({.mask = TensorSpec{DataType::kBool, {}}}).ok());
  EXPECT_TRUE(WithOptions({.mask = TensorSpec{DataType::kBool, {7}}}).ok());
  EXPECT_TRUE(
      WithOptions({.mask = TensorSpec{DataType::kBool, {2, 4, 5, 7}}}).ok());
}

TEST(AttentionProblemTest, RefusesMasksAndBiasesThatDoNotBroadcast) {
  ExpectRefused(WithOptions({.bias = TensorSpec{.shape = {6}}}),
                "options.bias.shape[0]", "1 or 7 (kv_len)", "6");
  ExpectRefused(WithOptions({.bias = TensorSpec{.shape = {4, 5}}}),
                "options.bias.shape[0]", "1 or 5 (q_len)", "4");
  ExpectRefused(WithOptions({.mask = TensorSpec{DataType::kBool, {2, 5, 7}}}),
                "options.mask.shape[0]", "1 or 4 (q_heads)", "2");
  ExpectRefused(
      WithOptions({.mask = TensorSpec{DataType::kBool, {3, 4, 5, 7}}}),
      "options.mask.shape[0]", "1 or 2 (batch)", "3");
  ExpectRefused(
      WithOptions({.mask = TensorSpec{DataType::kBool, {1, 2, 4, 5, 7}}}),
      "options.mask.shape", "rank 4 or less", "rank 5");
  ExpectRefused(WithOptions({.bias = TensorSpec{.shape = {0}}}),
                "options.bias.shape[0]", "1 or 7 (kv_len)", "0");
  ExpectRefused(WithOptions({.bias = TensorSpec{.shape = {-1, 7}}}),
                "options.bias.shape[0]", "1 or 5 (q_len)", "-1");
  // The axes are [batch, heads, q_len, kv_len] in every layout.
  EXPECT_TRUE(Create({5, 4, 6}, {7, 2, 6}, {7, 2, 3},
                     {.layout = Layout::kBshd,
                      .mask = TensorSpec{DataType::kBool, {4, 5, 7}}})
                  .ok());
}

TEST(AttentionProblemTest, RefusesScoreOptionsOutOfRange) {
  for (const float bad : {kNan, kInfinity, -kInfinity, 0.0F, -1.0F}) {
    EXPECT_EQ(FieldOf(WithOptions({.logits_soft_cap = bad}).status()),
              "options.logits_soft_cap");
  }
  ExpectRefused(WithOptions({.logits_soft_cap = 0.0F}),
                "options.logits_soft_cap", "a finite number > 0", "0");
  EXPECT_EQ(WithOptions({.logits_soft_cap = 30.0F})->params().soft_cap, 30);
  EXPECT_EQ(WithOptions({})->params().soft_cap, 0);

  ExpectRefused(WithOptions({.alibi_slopes = {1, 2}}), "options.alibi_slopes",
                "none, or 4, one per query head", "2");
  ExpectRefused(WithOptions({.alibi_slopes = {1, 2, kInfinity, 4}}),
                "options.alibi_slopes[2]", "a finite number", "inf");
  ExpectRefused(WithOptions({.alibi_slopes = {1, kNan, 3, 4}}),
                "options.alibi_slopes[1]", "a finite number", "nan");
  EXPECT_TRUE(WithOptions({.alibi_slopes = {1, -2, 0, 4}})->params().has_alibi);

  ExpectRefused(WithOptions({.sink_logits = {1}}), "options.sink_logits",
                "none, or 4, one per query head", "1");
  ExpectRefused(WithOptions({.sink_logits = {1, 2, 3, kInfinity}}),
                "options.sink_logits[3]", "a finite number or -inf", "inf");
  ExpectRefused(WithOptions({.sink_logits = {kNan, 2, 3, 4}}),
                "options.sink_logits[0]", "a finite number or -inf", "nan");
  EXPECT_TRUE(
      WithOptions({.sink_logits = {1, -kInfinity, 3, 4}})->params().has_sinks);
}

TEST(AttentionProblemTest, RefusesLengthsBeyondTheTensors) {
  ExpectRefused(WithOptions({.query_lengths = {5}}), "options.query_lengths",
                "none, or 2, one per batch entry", "1");
  ExpectRefused(WithOptions({.query_lengths = {5, 6}}),
                "options.query_lengths[1]", "0 to 5", "6");
  ExpectRefused(WithOptions({.key_lengths = {-1, 6}}), "options.key_lengths[0]",
                "0 to 7", "-1");
  ExpectRefused(WithOptions({.key_lengths = {1, 2, 3}}), "options.key_lengths",
                "none, or 2, one per batch entry", "3");
  EXPECT_TRUE(
      WithOptions({.query_lengths = {0, 5}, .key_lengths = {7, 0}}).ok());
}

TEST(AttentionProblemTest, RefusesOffsetsAndWindowsOutOfRange) {
  EXPECT_TRUE(WithOptions({.query_offsets = {3}}).ok());
  EXPECT_TRUE(WithOptions({.query_offsets = {-3, 1000}}).ok());
  ExpectRefused(WithOptions({.query_offsets = {1, 2, 3}}),
                "options.query_offsets",
                "none, or 2, one per batch entry (or one for all)", "3");
  ExpectRefused(WithOptions({.query_offsets = {1, kMax}}),
                "options.query_offsets[1]",
                "a number within +-1152921504606846976", "9223372036854775807");
  ExpectRefused(WithOptions({.window_left = -1}), "options.window_left",
                "a number >= 0", "-1");
  ExpectRefused(WithOptions({.window_right = -5}), "options.window_right",
                "a number >= 0", "-5");
  EXPECT_TRUE(WithOptions({.window_left = kMax, .window_right = 0}).ok());
}

// Creates a ragged problem with 6 query rows and 9 keys in total.
absl::StatusOr<AttentionProblem> Ragged(const AttentionOptions& options) {
  return Create({4, 6, 8}, {2, 9, 8}, {2, 9, 8}, options);
}

TEST(AttentionProblemTest, RaggedBatchesCountTheirEntries) {
  const auto problem =
      Ragged({.cu_seqlens_q = {0, 1, 1, 6}, .cu_seqlens_k = {0, 4, 4, 9}});
  ASSERT_TRUE(problem.ok()) << problem.status();
  EXPECT_TRUE(problem->params().ragged);
  EXPECT_EQ(problem->params().batch, 3);
  EXPECT_EQ(problem->params().q_len, 6);
  EXPECT_EQ(problem->query_bytes(), 4 * 6 * 8 * 4);
  EXPECT_EQ(problem->output_bytes(), 4 * 6 * 8 * 4);
  EXPECT_EQ(problem->lse_bytes(), 4 * 6 * 4);
  EXPECT_THAT(problem->OutputShape(), ElementsAre(4, 6, 8));
  EXPECT_THAT(problem->LseShape(), ElementsAre(4, 6));
  // There is one offset per entry.
  EXPECT_TRUE(Ragged({.query_offsets = {1, 2, 3},
                      .cu_seqlens_q = {0, 1, 1, 6},
                      .cu_seqlens_k = {0, 4, 4, 9}})
                  .ok());
  // This batch has no entries and empty tensors.
  const auto none = Create({0, 8}, {0, 8}, {0, 8},
                           {.cu_seqlens_q = {0}, .cu_seqlens_k = {0}});
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->params().batch, 0);
}

TEST(AttentionProblemTest, RefusesRaggedBatchesThatDoNotAddUp) {
  ExpectRefused(Ragged({.cu_seqlens_k = {0, 9}}), "options.cu_seqlens_q",
                "offsets beside cu_seqlens_k", "none");
  ExpectRefused(Ragged({.cu_seqlens_q = {0, 6}}), "options.cu_seqlens_k",
                "as many offsets as cu_seqlens_q, 2", "0");
  ExpectRefused(Ragged({.cu_seqlens_q = {0, 6}, .cu_seqlens_k = {0, 4, 9}}),
                "options.cu_seqlens_k", "as many offsets as cu_seqlens_q, 2",
                "3");
  ExpectRefused(Ragged({.cu_seqlens_q = {1, 6}, .cu_seqlens_k = {0, 9}}),
                "options.cu_seqlens_q[0]", "0", "1");
  ExpectRefused(
      Ragged({.cu_seqlens_q = {0, 4, 3, 6}, .cu_seqlens_k = {0, 4, 4, 9}}),
      "options.cu_seqlens_q[2]", "no less than 4", "3");
  ExpectRefused(Ragged({.cu_seqlens_q = {0, 6}, .cu_seqlens_k = {0, 8}}),
                "options.cu_seqlens_k[1]", "9 (the length of seq)", "8");
  ExpectRefused(Ragged({.cu_seqlens_q = {0}, .cu_seqlens_k = {0}}),
                "options.cu_seqlens_q[0]", "6 (the length of seq)", "0");
  ExpectRefused(Create({1, 4, 6, 8}, {1, 2, 9, 8}, {1, 2, 9, 8},
                       {.cu_seqlens_q = {0, 6}, .cu_seqlens_k = {0, 9}}),
                "query.shape", "rank 2 or 3 beside cu_seqlens_q", "rank 4");
  const AttentionOptions ragged = {.cu_seqlens_q = {0, 6},
                                   .cu_seqlens_k = {0, 9}};
  const auto with = [&](auto change) {
    AttentionOptions options = ragged;
    change(options);
    return Ragged(options);
  };
  ExpectRefused(with([](auto& o) { o.query_lengths = {6}; }),
                "options.query_lengths", "nothing beside cu_seqlens_q",
                "a value");
  ExpectRefused(with([](auto& o) { o.key_lengths = {9}; }),
                "options.key_lengths", "nothing beside cu_seqlens_q",
                "a value");
  ExpectRefused(with([](auto& o) { o.bias = TensorSpec{.shape = {1}}; }),
                "options.bias", "nothing beside cu_seqlens_q", "a value");
  ExpectRefused(with([](auto& o) {
                  o.mask = TensorSpec{DataType::kBool, {1}};
                }),
                "options.mask", "nothing beside cu_seqlens_q", "a value");
}

TEST(AttentionProblemTest, RefusesListsOfMoreEntriesThanMemoryIsPlannedFor) {
  constexpr int64_t kMost = AttentionProblem::kMaxListedEntries;
  const auto create = [](int64_t batch, const AttentionOptions& options) {
    return Create({batch, 1, 1, 1}, {batch, 1, 1, 1}, {batch, 1, 1, 1},
                  options);
  };
  const auto ones = [](int64_t count) {
    return std::vector<int64_t>(static_cast<size_t>(count), 1);
  };
  EXPECT_TRUE(create(kMost, {.key_lengths = ones(kMost)}).ok());
  const std::string most = "at most 65536 batch entries";
  ExpectRefused(create(kMost + 1, {.key_lengths = ones(kMost + 1)}),
                "options.key_lengths", most, "65537");
  ExpectRefused(create(kMost + 1, {.query_lengths = ones(kMost + 1)}),
                "options.query_lengths", most, "65537");
  ExpectRefused(create(kMost + 1, {.query_offsets = ones(kMost + 1)}),
                "options.query_offsets", most, "65537");
  const std::vector<int64_t> empty(static_cast<size_t>(kMost + 2), 0);
  ExpectRefused(Create({0, 1}, {0, 1}, {0, 1},
                       {.cu_seqlens_q = empty, .cu_seqlens_k = empty}),
                "options.cu_seqlens_q", most, "65537");
  // A single offset applies to all entries and is not limited like a list.
  EXPECT_TRUE(create(kMost + 1, {.query_offsets = {1}}).ok());
}

}  // namespace
}  // namespace attnd
