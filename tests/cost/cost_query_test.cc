#include "cost/cost_query.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <vector>

#include "base/field_error.h"
#include "tests/cost/sizes.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

absl::StatusOr<QueryCost> CostOfSizes(const Sizes& sizes,
                                      const CostQuery& base = {}) {
  CostQuery query = WithSizes(base, sizes);
  const absl::Status status = query.SetDefaults();
  if (!status.ok()) return status;
  return CostOf(query);
}

TEST(CostQueryTest, SizesHaveDefaults) {
  const auto terse = CostOfSizes({.seq_len = 64});
  const auto full = CostOfSizes({.batch = 1,
                                 .num_q_heads = 1,
                                 .num_kv_heads = 1,
                                 .q_len = 64,
                                 .kv_len = 64,
                                 .head_dim = 128,
                                 .v_head_dim = 128,
                                 .threads = 1,
                                 .concurrency = 1});
  ASSERT_TRUE(terse.ok()) << terse.status();
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(terse->peak_bytes, full->peak_bytes);
  EXPECT_EQ(terse->computation.input_bytes, 3 * 64 * 128 * 4);
}

TEST(CostQueryTest, CallsThatRunAtOnceMultiply) {
  const auto one = CostOfSizes({.seq_len = 64});
  const auto five = CostOfSizes({.seq_len = 64, .concurrency = 5});
  ASSERT_TRUE(one.ok() && five.ok());
  EXPECT_EQ(five->call.peak_bytes, one->call.peak_bytes);
  EXPECT_EQ(five->concurrency, 5);
  EXPECT_EQ(five->peak_bytes, 5 * one->peak_bytes);
}

TEST(CostQueryTest, CheckNamesWhatIsNegative) {
  EXPECT_TRUE(WithSizes({}, {}).CheckSizes().ok());
  EXPECT_EQ(FieldOf(WithSizes({}, {.kv_len = -1}).CheckSizes()), "kv_len");
  EXPECT_EQ(FieldOf(WithSizes({}, {.batch = 1, .threads = -1}).CheckSizes()),
            "threads");
}

// An error names the size that the caller set, and not another size that gets
// its default from it.
TEST(CostQueryTest, RefusalsNameTheSize) {
  struct Case {
    const char* name;
    Sizes sizes;
    AttentionOptions options = {};
  };
  const Case cases[] = {
      {"seq_len", {}},
      {"seq_len", {.q_len = 5}},
      {"seq_len", {.seq_len = kMax}},
      {"kv_len", {.seq_len = 1, .kv_len = kMax}},
      {"dimensions", {.seq_len = 8, .dimensions = 5000}},
      {"head_dim", {.seq_len = 8, .head_dim = 5000}},
      {"v_head_dim", {.seq_len = 8, .v_head_dim = 5000}},
      {"num_q_heads", {.seq_len = 8, .num_q_heads = 3, .num_kv_heads = 2}},
      {"num_q_heads",
       {.seq_len = 8, .num_q_heads = 3, .num_kv_heads = 2},
       {.layout = Layout::kBshd}},
      {"batch",
       {.seq_len = 8, .batch = 2},
       {.cu_seqlens_q = {0, 8}, .cu_seqlens_k = {0, 8}}},
      {"options.key_lengths[0]", {.seq_len = 8}, {.key_lengths = {9}}},
      {"concurrency", {.seq_len = 8, .concurrency = kMax}},
  };
  for (const auto& [name, sizes, options] : cases) {
    const auto cost = CostOfSizes(sizes, {.options = options});
    ASSERT_FALSE(cost.ok()) << name;
    EXPECT_EQ(cost.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(FieldOf(cost.status()), name) << cost.status();
  }
}

// A query returns an error if a figure does not fit an int64. No figure
// overflows silently.
TEST(CostQueryTest, AbsurdSizesAreCountedOrRefused) {
  std::mt19937_64 rng(kSeed);
  int counted = 0;
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    const auto size = [&](unsigned bits) {
      return static_cast<int64_t>(rng() >> (63 - rng() % bits));
    };
    CostQuery query =
        WithSizes({.transport = static_cast<Transport>(1 + rng() % 3)},
                  {.dimensions = 1 + size(10),
                   .batch = size(20),
                   .num_q_heads = size(20),
                   .q_len = 1 + size(60),
                   .kv_len = 1 + size(60),
                   .threads = size(63),
                   .concurrency = size(40)});
    ASSERT_TRUE(query.SetDefaults().ok());
    const auto cost = CostOf(query);
    if (!cost.ok()) {
      ++refused;
      EXPECT_EQ(ReasonOf(cost.status()), kInt64RangeReason) << cost.status();
      continue;
    }
    ++counted;
    const CallCost& call = cost->call;
    const int64_t figures[] = {call.computing_bytes, call.answering_bytes,
                               call.wire_bytes, call.response_bytes,
                               call.required_message_bytes};
    EXPECT_GT(*std::min_element(std::begin(figures), std::end(figures)), 0);
    EXPECT_GE(call.peak_bytes, cost->computation.workspace_bytes);
    EXPECT_GE(cost->peak_bytes, call.peak_bytes);
    ASSERT_FALSE(HasFailure()) << "seed " << kSeed << " case " << i;
  }
  EXPECT_GT(counted, 1000);
  EXPECT_GT(refused, 1000);
}

TEST(CostQueryTest, ScaledProblemsKeepTheirProportions) {
  CostQuery query = WithSizes({}, {.batch = 2, .q_len = 4, .kv_len = 10});
  query.options = {.bias = TensorSpec{.shape = {4, 10}},
                   .mask = TensorSpec{DataType::kBool, {1, 10}},
                   .query_lengths = {4, 1},
                   .key_lengths = {10, 0}};
  ASSERT_TRUE(query.SetDefaults().ok());
  const CostQuery larger = Scaled(query, 2.5);
  EXPECT_EQ(larger.q_len.value, 10);
  EXPECT_EQ(larger.kv_len.value, 25);
  EXPECT_EQ(larger.batch.value, 2);
  EXPECT_EQ(larger.options.query_lengths, (std::vector<int64_t>{10, 3}));
  EXPECT_EQ(larger.options.key_lengths, (std::vector<int64_t>{25, 0}));
  EXPECT_EQ(larger.options.bias->shape, (std::vector<int64_t>{10, 25}));
  EXPECT_EQ(larger.options.mask->shape, (std::vector<int64_t>{1, 25}));
  EXPECT_TRUE(CostOf(larger).ok());
  CostQuery ragged = WithSizes({}, {.seq_len = 6});
  ragged.options = {.cu_seqlens_q = {0, 2, 6}, .cu_seqlens_k = {0, 1, 6}};
  ASSERT_TRUE(ragged.SetDefaults().ok());
  EXPECT_EQ(Scaled(ragged, 3).options.cu_seqlens_q,
            (std::vector<int64_t>{0, 6, 18}));
  EXPECT_TRUE(CostOf(Scaled(ragged, 3)).ok());
}

// The search for the largest length that fits relies on this.
TEST(CostQueryTest, LongerSequencesNeverHoldLess) {
  for (const Transport transport :
       {Transport::kInline, Transport::kStream, Transport::kSharedMemory}) {
    CostQuery query =
        WithSizes({.transport = transport}, {.seq_len = 16, .threads = 3});
    ASSERT_TRUE(query.SetDefaults().ok());
    int64_t last = 0;
    for (double factor = 1; factor < 1e6; factor *= 1.3) {
      const auto cost = CostOf(Scaled(query, factor));
      ASSERT_TRUE(cost.ok()) << cost.status();
      EXPECT_GE(cost->computation.flash_bytes, last) << factor;
      last = cost->computation.flash_bytes;
    }
  }
}

}  // namespace
}  // namespace attnd
