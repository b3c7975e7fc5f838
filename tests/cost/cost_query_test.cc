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
  };
  for (const auto& [name, sizes, options] : cases) {
    const auto cost = CostOfSizes(sizes, {.options = options});
    ASSERT_FALSE(cost.ok()) << name;
    EXPECT_EQ(cost.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(FieldOf(cost.status()), name) << cost.status();
  }
}

// Every query has an answer, however large it is.
TEST(CostQueryTest, AbsurdSizesSaturate) {
  std::mt19937_64 rng(kSeed);
  int in_range = 0;
  int out_of_range = 0;
  for (int i = 0; i < 20000; ++i) {
    // Half of the queries are small enough that some of them can be computed.
    const unsigned max_bits = rng() % 2 == 0 ? 20 : 63;
    const auto size = [&](unsigned bits) {
      return static_cast<int64_t>(rng() >>
                                  (63 - rng() % std::min(bits, max_bits)));
    };
    CostQuery query =
        WithSizes({.transport = static_cast<Transport>(1 + rng() % 3)},
                  {.dimensions = 1 + size(10),
                   .batch = size(63),
                   .num_q_heads = size(63),
                   .q_len = std::max<int64_t>(1, size(63)),
                   .kv_len = std::max<int64_t>(1, size(63)),
                   .threads = size(63),
                   .concurrency = size(63)});
    query.options.causal = static_cast<Causal>(rng() % 3);
    if (rng() % 2 == 0) query.options.window_left = size(63);
    ASSERT_TRUE(query.SetDefaults().ok());
    const auto cost = CostOf(query);
    ASSERT_TRUE(cost.ok()) << cost.status();
    ++(cost->in_int64_range ? in_range : out_of_range);
    const MemoryEstimate& computation = cost->computation;
    const CallCost& call = cost->call;
    const int64_t figures[] = {computation.input_bytes,
                               computation.output_bytes,
                               computation.workspace_bytes,
                               call.answering_bytes,
                               call.wire_bytes,
                               call.response_bytes,
                               call.required_message_bytes};
    EXPECT_GT(*std::min_element(std::begin(figures), std::end(figures)), 0);
    EXPECT_GE(computation.flops, 0);
    EXPECT_GE(computation.flash_bytes, computation.workspace_bytes);
    EXPECT_GE(computation.naive_bytes, computation.input_bytes);
    EXPECT_GE(call.peak_bytes, computation.workspace_bytes);
    EXPECT_GE(cost->peak_bytes, call.peak_bytes);
    if (cost->in_int64_range) {
      EXPECT_LT(cost->peak_bytes, kMax);
      EXPECT_LT(computation.naive_bytes, kMax);
    }
    ASSERT_FALSE(HasFailure()) << "seed " << kSeed << " case " << i;
  }
  EXPECT_GT(in_range, 500);
  EXPECT_GT(out_of_range, 1000);
}

// Each figure saturates on its own.
TEST(CostQueryTest, FiguresThatFitStayExact) {
  constexpr int64_t kLength = int64_t{1} << 50;
  const auto cost = CostOfSizes({.seq_len = kLength, .dimensions = 64});
  ASSERT_TRUE(cost.ok()) << cost.status();
  EXPECT_FALSE(cost->in_int64_range);
  EXPECT_EQ(cost->computation.input_bytes, 3 * kLength * 64 * 4);
  EXPECT_EQ(cost->computation.output_bytes, kLength * 64 * 4);
  EXPECT_EQ(cost->computation.naive_bytes, kMax);
  EXPECT_EQ(cost->computation.flops, kMax);
  // 100 million tokens are more than can be computed, but all figures fit.
  constexpr int64_t kTokens = 100'000'000;
  const auto tokens = CostOfSizes({.seq_len = kTokens});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_FALSE(tokens->in_int64_range);
  EXPECT_EQ(tokens->computation.naive_bytes,
            4 * kTokens * kTokens + 4 * 4 * kTokens * 128);
  EXPECT_EQ(tokens->computation.flops, 4 * 128 * kTokens * kTokens);
  EXPECT_TRUE(CostOfSizes({.seq_len = kTokens / 2})->in_int64_range);
  const auto many = CostOfSizes({.seq_len = 8, .concurrency = kMax});
  ASSERT_TRUE(many.ok()) << many.status();
  EXPECT_EQ(many->peak_bytes, kMax);
  EXPECT_LT(many->call.peak_bytes, int64_t{1} << 30);
  EXPECT_FALSE(many->in_int64_range);
}

TEST(CostQueryTest, NamesTheSizeToReduce) {
  const struct {
    Sizes sizes;
    const char* name;
  } cases[] = {{{.batch = kMax / 2, .q_len = 8, .kv_len = 8}, "batch"},
               {{.seq_len = 100'000'000}, "seq_len"},
               {{.q_len = 100'000'000, .kv_len = 200'000'000}, "kv_len"},
               {{.seq_len = 8, .num_q_heads = kMax}, "num_q_heads"},
               // Fewer calls would not make the problem smaller.
               {{.seq_len = 100'000'000, .concurrency = kMax}, "seq_len"},
               {{.seq_len = 8, .concurrency = kMax}, "concurrency"},
               // More threads than tasks would need no more memory.
               {{.dimensions = 1,
                 .num_q_heads = 1 << 15,
                 .q_len = int64_t{1} << 40,
                 .kv_len = 1,
                 .threads = kMax},
                "threads"}};
  for (const auto& [sizes, name] : cases) {
    CostQuery query = WithSizes({}, sizes);
    ASSERT_TRUE(query.SetDefaults().ok());
    const auto cost = CostOf(query);
    ASSERT_TRUE(cost.ok()) << cost.status();
    const absl::Status status = CheckInt64Range(query, *cost);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(FieldOf(status), name) << status;
    EXPECT_EQ(ReasonOf(status), kInt64RangeReason);
  }
  CostQuery small = WithSizes({}, {.seq_len = 8});
  ASSERT_TRUE(small.SetDefaults().ok());
  EXPECT_TRUE(CheckInt64Range(small, CostOf(small).value()).ok());
}

TEST(CostQueryTest, ShapesFollowTheLayout) {
  CostQuery query = WithSizes({}, {.batch = 2,
                                   .num_q_heads = 8,
                                   .num_kv_heads = 4,
                                   .q_len = 3,
                                   .kv_len = 5,
                                   .head_dim = 7,
                                   .v_head_dim = 6});
  ASSERT_TRUE(query.SetDefaults().ok());
  using Shape = std::vector<int64_t>;
  EXPECT_EQ(InputShapesOf(query).query, (Shape{2, 8, 3, 7}));
  query.options.layout = Layout::kBshd;
  EXPECT_EQ(InputShapesOf(query).key, (Shape{2, 5, 4, 7}));
  query.options.cu_seqlens_q = {0, 3};
  query.options.cu_seqlens_k = {0, 5};
  EXPECT_EQ(InputShapesOf(query).value, (Shape{5, 4, 6}));
}

TEST(CostQueryTest, FlopsOfLongSequencesAreExact) {
  constexpr int64_t kLength = int64_t{1} << 58;
  const auto window = [&](Causal causal, int64_t q_len) {
    return CostOfSizes({.dimensions = 1, .q_len = q_len, .kv_len = kLength},
                       {.options = {.causal = causal,
                                    .window_left = 0,
                                    .window_right = 0}})
        ->computation.flops;
  };
  EXPECT_EQ(window(Causal::kNone, kLength), 4 * kLength);
  EXPECT_EQ(window(Causal::kBottomRight, kLength), 4 * kLength);
  EXPECT_EQ(window(Causal::kNone, kMax), 4 * kLength);
  EXPECT_EQ(window(Causal::kBottomRight, kMax), 4 * kLength);
  EXPECT_EQ(window(Causal::kBottomRight, 1), 4);
}

}  // namespace
}  // namespace attnd
