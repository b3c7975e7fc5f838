#include "cost/largest_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/attention_case.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

using testing::Affordable;

constexpr EstimateGoal kGoals[] = {EstimateGoal::kMaxSeqLen,
                                   EstimateGoal::kMaxBatch,
                                   EstimateGoal::kMaxConcurrency};

// A question for the search. Its query has no defaults yet.
struct Question {
  CostQuery query;
  EstimateGoal goal = EstimateGoal::kMaxSeqLen;
  bool q_axis_follows = false;  // axes of bias and mask that are not 1
  bool kv_axis_follows = false;
  CostLimits limits;
};

// Returns the problem of this size in the family of a question. This is written
// apart from the code under test.
CostQuery Member(const Question& question, int64_t size) {
  CostQuery query = question.query;
  AttentionOptions& options = query.options;
  switch (question.goal) {
    case EstimateGoal::kMaxSeqLen:
      query.seq_len.value = size;
      break;
    case EstimateGoal::kMaxBatch:
      query.batch.value = size;
      break;
    default:
      query.concurrency.value = size;
  }
  const int64_t batch = query.batch.value;
  EXPECT_TRUE(query.SetDefaults().ok());
  for (auto* tensor : {&options.bias, &options.mask}) {
    if (!*tensor) continue;
    const int64_t extents[] = {batch, query.num_q_heads.value,
                               query.q_len.value, query.kv_len.value};
    const size_t rank = (*tensor)->shape.size();
    for (size_t i = 0; i < rank; ++i) {
      int64_t& extent = (*tensor)->shape[i];
      if (extent != 1) extent = extents[4 - rank + i];
    }
  }
  const auto cut = [](std::vector<int64_t>& lengths, int64_t longest) {
    for (int64_t& length : lengths) length = std::min(length, longest);
  };
  cut(options.query_lengths, query.q_len.value);
  cut(options.key_lengths, query.kv_len.value);
  return query;
}

bool Fits(const QueryCost& cost, const CostLimits& limits) {
  return cost.in_int64_range &&
         cost.call.required_message_bytes <= limits.max_message_bytes &&
         cost.peak_bytes <= limits.budget_bytes &&
         cost.concurrency <= limits.max_in_flight;
}

bool FitsAt(const Question& question, int64_t size) {
  const auto cost = CostOf(Member(question, size));
  EXPECT_TRUE(cost.ok()) << cost.status();
  return cost.ok() && Fits(*cost, question.limits);
}

// Draws questions. Their limits are near the cost of a problem of a random
// size, where a search that makes a mistake is likely to show it.
class RandomQuestion {
 public:
  explicit RandomQuestion(uint64_t seed) : rng_(seed) {}

  Question Draw() {
    Question question;
    question.goal = kGoals[Below(3)];
    CostQuery& query = question.query;
    query.transport = static_cast<Transport>(1 + Below(3));
    query.dtype = Type();
    query.machine.isa = kIsas[Below(std::size(kIsas))];
    query.machine.l2_bytes = int64_t{1} << (18 + Below(5));
    const int64_t kv_heads = 1 + Below(4);
    const int64_t group = OneIn(2) ? 1 + Below(4) : 1 + Below(40);
    query.num_kv_heads.value = kv_heads;
    query.num_q_heads.value = kv_heads * group;
    query.head_dim.value = OneIn(2) ? 1 + Below(16) : 1 + Below(256);
    query.v_head_dim.value = OneIn(2) ? 0 : 1 + Below(256);
    query.threads.value = OneIn(3) ? 1 : 1 + Below(40);
    query.batch.value = 1 + Below(4);
    query.concurrency.value = 1 + Below(20);
    if (question.goal == EstimateGoal::kMaxSeqLen) {
      if (OneIn(3)) {
        (OneIn(2) ? query.q_len : query.kv_len).value = Length();
      }
      // The value of the size that is searched has no effect.
      query.seq_len.value = Below(100);
    } else {
      query.q_len.value = Length();
      query.kv_len.value = Length();
    }
    DrawOptions(question);
    DrawLimits(question);
    return question;
  }

 private:
  int64_t Below(uint64_t end) { return static_cast<int64_t>(rng_() % end); }
  bool OneIn(uint64_t n) { return rng_() % n == 0; }
  // Returns a number of any magnitude up to 2^bits.
  int64_t Magnitude(uint64_t bits) {
    return static_cast<int64_t>((rng_() >> 1) >> (63 - 1 - rng_() % bits));
  }
  int64_t Length() { return 1 + Magnitude(OneIn(4) ? 24 : 11); }
  DataType Type() { return static_cast<DataType>(1 + Below(3)); }

  void DrawOptions(Question& question) {
    const CostQuery& query = question.query;
    AttentionOptions& options = question.query.options;
    const bool seq_len = question.goal == EstimateGoal::kMaxSeqLen;
    const bool any_batch = question.goal != EstimateGoal::kMaxBatch;
    options.precision = static_cast<Precision>(1 + Below(3));
    options.layout = static_cast<Layout>(1 + Below(2));
    options.causal = static_cast<Causal>(Below(3));
    if (OneIn(4)) options.block_size = 1 + Below(600);
    if (OneIn(4)) options.window_left = Below(1000);
    if (OneIn(6)) {
      options.alibi_slopes.resize(static_cast<size_t>(query.num_q_heads.value),
                                  1);
    }
    if (OneIn(6)) options.query_offsets = {Below(1000)};
    question.query.outputs.return_lse = OneIn(2);
    if (OneIn(2)) question.query.outputs.output_dtype = Type();
    const int64_t q_len = query.q_len.value;
    const int64_t kv_len = query.kv_len.value;
    const auto batch = static_cast<size_t>(query.batch.value);
    if (question.goal == EstimateGoal::kMaxConcurrency && OneIn(4)) {
      question.query.batch.value = 1;
      for (auto* list : {&options.cu_seqlens_q, &options.cu_seqlens_k}) {
        const int64_t total = list == &options.cu_seqlens_q ? q_len : kv_len;
        for (int i = 0; i < 5; ++i) {
          list->push_back(Below(static_cast<uint64_t>(total)));
        }
        list->insert(list->end(), {0, total});
        std::sort(list->begin(), list->end());
      }
      return;
    }
    if (any_batch && OneIn(4)) {
      for (auto* list : {&options.query_lengths, &options.key_lengths}) {
        const int64_t len = list == &options.query_lengths ? q_len : kv_len;
        if (OneIn(2)) continue;
        for (size_t i = 0; i < batch; ++i) {
          list->push_back(seq_len && len == 0
                              ? Magnitude(12)
                              : Below(static_cast<uint64_t>(len) + 1));
        }
      }
    }
    for (auto* tensor : {&options.bias, &options.mask}) {
      if (!OneIn(4)) continue;
      const int64_t full[] = {query.batch.value, query.num_q_heads.value,
                              q_len == 0 ? 7 : q_len, kv_len == 0 ? 9 : kv_len};
      const auto rank = static_cast<size_t>(Below(5));
      TensorSpec spec{
          .dtype = tensor == &options.mask ? DataType::kBool : Type(),
          .shape = {}};
      for (size_t axis = 4 - rank; axis < 4; ++axis) {
        spec.shape.push_back(OneIn(2) ? 1 : full[axis]);
      }
      *tensor = spec;
    }
  }

  void DrawLimits(Question& question) {
    const auto cost = CostOf(Member(question, 1 + Magnitude(13)));
    ASSERT_TRUE(cost.ok()) << cost.status();
    const auto near = [&](int64_t bytes) {
      switch (Below(4)) {
        case 0:
          return bytes;
        case 1:
          return std::max<int64_t>(0, bytes - 1 - Magnitude(18));
        default:
          return bytes + Magnitude(20);
      }
    };
    question.limits.budget_bytes = near(cost->peak_bytes);
    question.limits.max_message_bytes =
        OneIn(2) ? int64_t{1} << 40 : near(cost->call.required_message_bytes);
    question.limits.max_in_flight = OneIn(2) ? 20 : 1 + Below(100);
    question.query.max_message_bytes = question.limits.max_message_bytes;
  }

  std::mt19937_64 rng_;
};

std::string Text(const Question& question) {
  const CostQuery& query = question.query;
  return absl::StrCat(
      "goal ", static_cast<int>(question.goal), " transport ",
      static_cast<int>(query.transport), " isa ",
      std::string(IsaName(query.machine.isa)), " batch ", query.batch.value,
      " heads ", query.num_q_heads.value, "/", query.num_kv_heads.value,
      " lengths ", query.q_len.value, "/", query.kv_len.value, " dims ",
      query.head_dim.value, "/", query.v_head_dim.value, " threads ",
      query.threads.value, " concurrency ", query.concurrency.value, " budget ",
      question.limits.budget_bytes);
}

TEST(LargestFitTest, NothingLargerFits) {
  // The rows of all sizes at which a member may take less memory than the one
  // before it are below this.
  constexpr int64_t kScanned = 2200;
  int answered = 0;
  int shrunk = 0;
  for (uint64_t seed = 1; seed <= Affordable(2000); ++seed) {
    Question question = RandomQuestion(seed).Draw();
    SCOPED_TRACE(absl::StrCat("seed ", seed, ": ", Text(question)));
    const auto largest =
        FindLargestFit(question.query, question.goal, question.limits);
    ASSERT_TRUE(largest.ok()) << largest.status();
    const int64_t size = largest->size;
    const auto cost = CostOf(Member(question, std::max<int64_t>(1, size)));
    ASSERT_EQ(largest->cost.peak_bytes, cost->peak_bytes);
    ASSERT_EQ(largest->cost.call.required_message_bytes,
              cost->call.required_message_bytes);
    if (size > 0) {
      ++answered;
      ASSERT_TRUE(FitsAt(question, size));
    }
    const auto next = CostOf(Member(question, size + 1));
    ASSERT_FALSE(Fits(*next, question.limits)) << size;
    ASSERT_EQ(largest->limiting_factor, ExceededLimit(*next, question.limits));
    // Scans all sizes that could be above a size that does not fit.
    for (int64_t larger = size + 2; larger < kScanned; ++larger) {
      ASSERT_FALSE(FitsAt(question, larger)) << size << " and " << larger;
    }
    for (int64_t larger = std::max(size + 2, kScanned); larger < kMax / 2;
         larger *= 2) {
      ASSERT_FALSE(FitsAt(question, larger)) << size << " and " << larger;
    }
    for (int64_t smaller = std::max<int64_t>(1, size - 300); smaller < size;
         ++smaller) {
      if (!FitsAt(question, smaller)) {
        ++shrunk;
        break;
      }
    }
  }
  EXPECT_GT(answered, Affordable(2000) / 2);
  // The cases are such that a plain binary search would be wrong for some.
  EXPECT_GT(shrunk, 0);
}

}  // namespace
}  // namespace attnd
