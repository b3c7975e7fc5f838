#include "cost/problem_family.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/field_error.h"
#include "tests/cost/sizes.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

// Returns the cost of a query whose sizes are all set.
QueryCost CostOfMember(const Sizes& sizes, const AttentionOptions& options) {
  CostQuery query = WithSizes({.options = options}, sizes);
  EXPECT_TRUE(query.SetDefaults().ok());
  const auto cost = CostOf(query);
  EXPECT_TRUE(cost.ok()) << cost.status();
  return cost.value_or(QueryCost());
}

void ExpectSame(const absl::StatusOr<QueryCost>& got,
                const QueryCost& expected) {
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->peak_bytes, expected.peak_bytes);
  EXPECT_EQ(got->computation.input_bytes, expected.computation.input_bytes);
  EXPECT_EQ(got->computation.workspace_bytes,
            expected.computation.workspace_bytes);
  EXPECT_EQ(got->computation.flops, expected.computation.flops);
  EXPECT_EQ(got->call.required_message_bytes,
            expected.call.required_message_bytes);
}

TEST(ProblemFamilyTest, LengthsFollowSeqLen) {
  const AttentionOptions given{.bias = TensorSpec{.shape = {3, 4096, 5}},
                               .mask = TensorSpec{DataType::kBool, {1, 9}},
                               .query_lengths = {4, 1000},
                               .key_lengths = {50, 0}};
  auto family = ProblemFamily::Of(
      WithSizes({.options = given}, {.batch = 2, .num_q_heads = 3}),
      EstimateGoal::kMaxSeqLen);
  ASSERT_TRUE(family.ok()) << family.status();
  // In any order: a member does not depend on the one before.
  for (const int64_t size : {70, 1, 20, 2000}) {
    AttentionOptions options = given;
    options.bias->shape = {3, size, size};
    options.mask->shape = {1, size};
    options.query_lengths = {std::min<int64_t>(4, size),
                             std::min<int64_t>(1000, size)};
    options.key_lengths = {std::min<int64_t>(50, size), 0};
    ExpectSame(
        family->CostAt(size),
        CostOfMember({.seq_len = size, .batch = 2, .num_q_heads = 3}, options));
  }
}

TEST(ProblemFamilyTest, ALengthThatIsSetDoesNotFollow) {
  const AttentionOptions options{.bias = TensorSpec{.shape = {7, 999}},
                                 .query_lengths = {5}};
  auto family = ProblemFamily::Of(
      WithSizes({.options = options}, {.seq_len = 3, .q_len = 7}),
      EstimateGoal::kMaxSeqLen);
  ASSERT_TRUE(family.ok()) << family.status();
  AttentionOptions expected = options;
  expected.bias->shape = {7, 50};
  ExpectSame(family->CostAt(50),
             CostOfMember({.q_len = 7, .kv_len = 50}, expected));
  EXPECT_TRUE(family->sizes_that_may_take_less().empty());
}

TEST(ProblemFamilyTest, BatchAxesFollowBatch) {
  const AttentionOptions given{
      .query_offsets = {3},
      .bias = TensorSpec{.shape = {77, 1, 1, 20}},
      .mask = TensorSpec{DataType::kBool, {1, 1, 20, 1}}};
  auto family = ProblemFamily::Of(
      WithSizes({.options = given}, {.seq_len = 20, .batch = 4}),
      EstimateGoal::kMaxBatch);
  ASSERT_TRUE(family.ok()) << family.status();
  AttentionOptions options = given;
  options.bias->shape[0] = 9;
  ExpectSame(family->CostAt(9),
             CostOfMember({.seq_len = 20, .batch = 9}, options));
}

TEST(ProblemFamilyTest, LongerSequencesKeepTheirProportions) {
  AttentionOptions options{.bias = TensorSpec{.shape = {4, 10}},
                           .mask = TensorSpec{DataType::kBool, {1, 10}},
                           .query_lengths = {4, 1},
                           .key_lengths = {10, 0}};
  CostQuery query =
      WithSizes({.options = options}, {.batch = 2, .q_len = 4, .kv_len = 10});
  ASSERT_TRUE(query.SetDefaults().ok());
  ProblemFamily family = ProblemFamily::WithLongerSequences(query);
  options.bias->shape = {10, 25};
  options.mask->shape = {1, 25};
  options.query_lengths = {10, 2};
  options.key_lengths = {25, 0};
  ExpectSame(family.CostAt(25),
             CostOfMember({.batch = 2, .q_len = 10, .kv_len = 25}, options));
  // Lengths do not overflow on the way.
  EXPECT_TRUE(family.CostAt(kMax).ok());

  CostQuery ragged = WithSizes(
      {.options = {.cu_seqlens_q = {0, 2, 6}, .cu_seqlens_k = {0, 1, 6}}},
      {.seq_len = 6});
  ASSERT_TRUE(ragged.SetDefaults().ok());
  ExpectSame(ProblemFamily::WithLongerSequences(ragged).CostAt(18),
             CostOfMember({.seq_len = 18}, {.cu_seqlens_q = {0, 6, 18},
                                            .cu_seqlens_k = {0, 3, 18}}));
}

TEST(ProblemFamilyTest, NamesWhatContradictsTheGoal) {
  struct Case {
    const char* field;
    EstimateGoal goal;
    Sizes sizes;
    AttentionOptions options = {};
  };
  const std::vector<int64_t> offsets = {0, 8};
  const TensorSpec bias{.shape = {-3, 1, 8, 8}};
  const Case cases[] = {
      {"kv_len", EstimateGoal::kMaxSeqLen, {.q_len = 1, .kv_len = 8}},
      {"options.cu_seqlens_q",
       EstimateGoal::kMaxSeqLen,
       {.seq_len = 8},
       {.cu_seqlens_q = offsets, .cu_seqlens_k = offsets}},
      {"options.cu_seqlens_k",
       EstimateGoal::kMaxSeqLen,
       {},
       {.cu_seqlens_k = offsets}},
      {"options.bias.shape[1]",
       EstimateGoal::kMaxSeqLen,
       {},
       {.bias = TensorSpec{.shape = {8, 0}}}},
      {"options.bias.shape[0]",
       EstimateGoal::kMaxSeqLen,
       {.q_len = 8},
       {.bias = TensorSpec{.shape = {9, 4}}}},
      {"options.query_lengths[1]",
       EstimateGoal::kMaxSeqLen,
       {.batch = 2},
       {.query_lengths = {4, -1}}},
      {"options.query_lengths",
       EstimateGoal::kMaxBatch,
       {.seq_len = 8},
       {.query_lengths = {8}}},
      {"options.key_lengths",
       EstimateGoal::kMaxBatch,
       {.seq_len = 8},
       {.key_lengths = {8}}},
      {"options.query_offsets",
       EstimateGoal::kMaxBatch,
       {.seq_len = 8, .batch = 2},
       {.query_offsets = {1, 2}}},
      {"options.cu_seqlens_q",
       EstimateGoal::kMaxBatch,
       {.seq_len = 8},
       {.cu_seqlens_q = offsets, .cu_seqlens_k = offsets}},
      {"options.bias.shape[0]",
       EstimateGoal::kMaxBatch,
       {.seq_len = 8},
       {.bias = bias}},
      {"seq_len", EstimateGoal::kMaxBatch, {}},
      {"seq_len", EstimateGoal::kMaxConcurrency, {.q_len = 4}},
      {"num_q_heads",
       EstimateGoal::kMaxConcurrency,
       {.seq_len = 8, .num_q_heads = 3, .num_kv_heads = 2}},
      {"dimensions", EstimateGoal::kMaxSeqLen, {.dimensions = 1025}},
      {"batch", EstimateGoal::kMaxSeqLen, {.batch = -1}}};
  for (const auto& [field, goal, sizes, options] : cases) {
    const auto family =
        ProblemFamily::Of(WithSizes({.options = options}, sizes), goal);
    ASSERT_FALSE(family.ok()) << field;
    EXPECT_EQ(family.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(FieldOf(family.status()), field) << family.status();
  }
}

}  // namespace
}  // namespace attnd
