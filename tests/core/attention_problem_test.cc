#include "core/attention_problem.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "core/field_error.h"

namespace attnd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Shape = std::vector<int64_t>;

constexpr uint64_t kSeed = 20261122;
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

absl::StatusOr<AttentionProblem> Create(const Shape& query, const Shape& key,
                                        const Shape& value,
                                        const AttentionOptions& options = {}) {
  return AttentionProblem::Create({.shape = query}, {.shape = key},
                                  {.shape = value}, options);
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
  const auto problem = Create({2, 8, 5, 64}, {2, 2, 7, 64}, {2, 2, 7, 32},
                              {.causal = Causal::kTopLeft, .return_lse = true});
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
  // Each tensor fits; their scores do not.
  refused_as_too_large({1, 1, int64_t{1} << 40, 64},
                       {1, 1, int64_t{1} << 40, 64}, "key.shape");
  // No element at all, but strides that overflow.
  refused_as_too_large({0, kMax, kMax, 64}, {0, kMax, kMax, 64}, "query.shape");
  refused_as_too_large({kMax, 1, 0, 64}, {kMax, 1, 0, 64}, "query.shape");
}

// Whatever Create lets through, the largest product of its numbers stays within
// the bound that later sums rely on.
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
  // Where the caller set no scale, the temperature is what it has to change.
  EXPECT_EQ(FieldOf(status({.temperature = 1e-40F})), "options.temperature");
}

}  // namespace
}  // namespace attnd
