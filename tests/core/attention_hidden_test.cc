// Tests that hidden keys and values never affect a row, and that visible ones
// affect it as the formula says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/reference_attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/isas.h"
#include "tests/support/numbers.h"
#include "tests/support/per_isa_engine.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::AttentionCase;
using ::attnd::testing::CaseShape;
using ::attnd::testing::RandomCase;
using ::attnd::testing::SameBits;
using ::attnd::testing::SplitShapes;
using ::attnd::testing::TypedArray;
using ::testing::IsEmpty;

// Sets every element of a key or value row.
template <typename T>
void FillRow(TypedArray& array, const TensorView<T>& view, int64_t batch,
             int64_t head, int64_t seq, float value) {
  for (int64_t d = 0; d < view.shape[3]; ++d) {
    array.Set(view.Offset(batch, head, seq) + d, value);
  }
}

class AttentionHiddenTest : public testing::PerIsaEngineTest {
 protected:
  // Gives other numbers to every key that no row of its group's heads sees, and
  // checks that no bit of the answer changes. Returns the number of these keys.
  int64_t Poison(AttentionCase& c) {
    const AttentionProblem& problem = c.problem();
    const AttentionParams& p = problem.params();
    Compute(c);
    const TypedArray output = c.output;
    const std::vector<float> lse = c.lse;
    const auto keys = problem.KeyView(c.key.data());
    const auto values = problem.ValueView(c.value.data());
    // The index is made of batch entry, kv head and position along the
    // sequence.
    std::vector<bool> seen(
        static_cast<size_t>(keys.shape[0] * keys.shape[1] * keys.shape[2]));
    const auto at = [&](int64_t b, int64_t h, int64_t s) {
      return static_cast<size_t>((b * keys.shape[1] + h) * keys.shape[2] + s);
    };
    for (int64_t b = 0; b < p.batch; ++b) {
      const BatchEntry entry = problem.visibility().Entry(b);
      for (int64_t h = 0; h < p.num_q_heads; ++h) {
        for (int64_t row = 0; row < entry.q_len; ++row) {
          for (const ReferenceKey& key :
               ReferenceWeights(problem, c.buffers(), b, h, row).keys) {
            seen[at(entry.batch, h / p.HeadsPerGroup(),
                    entry.kv_begin + key.index)] = true;
          }
        }
      }
    }
    constexpr float kPoisons[] = {kNan,       kInfinity, 1,
                                  -kInfinity, 1e30F,     1e-30F};
    int64_t poisoned = 0;
    for (int64_t b = 0; b < keys.shape[0]; ++b) {
      for (int64_t h = 0; h < keys.shape[1]; ++h) {
        for (int64_t s = 0; s < keys.shape[2]; ++s) {
          if (seen[at(b, h, s)]) continue;
          FillRow(c.key, keys, b, h, s, kPoisons[poisoned % 6]);
          FillRow(c.value, values, b, h, s, kPoisons[poisoned % 5]);
          ++poisoned;
        }
      }
    }
    Compute(c);
    EXPECT_TRUE(c.output == output) << c.ToString();
    if (p.return_lse) {
      EXPECT_TRUE(SameBits(c.lse, lse)) << c.ToString();
    }
    return poisoned;
  }
};

TEST_P(AttentionHiddenTest, PoisonInHiddenKeysChangesNoBit) {
  std::mt19937_64 rng(kSeed);
  int64_t poisoned = 0;
  for (int i = 0; i < Affordable(300); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomCase(rng, 130), rng());
    if (i % 3 == 0) c.Scale(1e-20F);
    poisoned += Poison(c);
    if (HasFailure()) return;
  }
  EXPECT_GT(poisoned, Affordable(300));
}

TEST_P(AttentionHiddenTest, PoisonBesideSplitTilesChangesNoBit) {
  CaseShape shape = SplitShapes()[1];
  for (const float size : testing::kSplitSizes) {
    AttentionCase c(shape, kSeed);
    c.Scale(size);
    EXPECT_GT(Poison(c), 1000);
  }
}

struct Hiding {
  const char* name;
  AttentionOptions options;
};

constexpr int64_t kRows = 70;
constexpr int64_t kKeys = 150;

// Returns each way to hide keys, alone and together with options that adjust
// scores.
std::vector<Hiding> EveryHiding() {
  std::vector<Hiding> ways = {
      {"top-left", {.causal = Causal::kTopLeft}},
      {"bottom-right", {.causal = Causal::kBottomRight}},
      {"offsets", {.causal = Causal::kTopLeft, .query_offsets = {37}}},
      {"window left", {.query_offsets = {50}, .window_left = 9}},
      {"window right", {.window_right = 11}},
      {"window",
       {.causal = Causal::kBottomRight, .window_left = 20, .window_right = 3}},
      {"key lengths", {.key_lengths = {83}}},
      {"query lengths", {.query_lengths = {33}}},
      {"mask", {.mask = TensorSpec{DataType::kBool, {1, 1, kRows, kKeys}}}},
      {"mask of keys", {.mask = TensorSpec{DataType::kBool, {kKeys}}}},
      {"mask of rows", {.mask = TensorSpec{DataType::kBool, {kRows, 1}}}},
      {"bias", {.bias = {{.shape = {1, 1, kRows, kKeys}}}}},
      {"bias of keys", {.bias = {{.dtype = DataType::kF16, .shape = {kKeys}}}}},
  };
  const size_t plain = ways.size();
  for (size_t i = 0; i < plain; ++i) {
    ways.push_back(ways[i]);
    ways.back().options.logits_soft_cap = 5.0F;
    ways.push_back(ways[i]);
    ways.back().options.alibi_slopes = {0.1F, 0.2F};
    ways.back().options.sink_logits = {0.5F, -kInfinity};
  }
  return ways;
}

// One key at a time is NaN. Some rows see it, and other rows of the same tile
// do not. Rows that see it must be entirely NaN, and no bit of the other rows
// may change.
TEST_P(AttentionHiddenTest, AKeyOfNanReachesTheRowsThatSeeItAlone) {
  for (const Hiding& way : EveryHiding()) {
    for (const DataType type : {DataType::kF32, DataType::kBF16}) {
      CaseShape shape = {.group = 2,
                         .q_len = kRows,
                         .kv_len = kKeys,
                         .head_dim = 20,
                         .v_head_dim = 20,
                         .query_dtype = type,
                         .key_dtype = type,
                         .value_dtype = type,
                         .options = way.options};
      shape.outputs.return_lse = true;
      AttentionCase clean(shape, kSeed);
      Compute(clean);
      ASSERT_THAT(clean.Compare(), IsEmpty()) << way.name;
      std::vector<ReferenceRow> rows;
      rows.reserve(2 * kRows);
      for (int64_t row = 0; row < 2 * kRows; ++row) {
        rows.push_back(ReferenceWeights(clean.problem(), clean.buffers(), 0,
                                        row / kRows, row % kRows));
      }
      for (const int64_t j : {0, 1, 5, 63, 64, 100, 149}) {
        SCOPED_TRACE(::testing::Message() << way.name << ", key " << j);
        AttentionCase c(shape, kSeed);
        c.key.Set(j * 20 + 3, kNan);
        for (int64_t d = 0; d < 20; ++d) {
          c.value.Set(j * 20 + d, d % 2 == 0 ? kNan : kInfinity);
        }
        Compute(c);
        for (int64_t row = 0; row < 2 * kRows; ++row) {
          const auto at = static_cast<size_t>(row);
          const bool sees =
              std::any_of(rows[at].keys.begin(), rows[at].keys.end(),
                          [&](const auto& key) { return key.index == j; });
          ASSERT_TRUE(sees ? std::isnan(c.lse[at]) : c.lse[at] == clean.lse[at])
              << "row " << row;
          for (int64_t d = row * 20; d < (row + 1) * 20; ++d) {
            ASSERT_TRUE(sees ? std::isnan(c.output[d])
                             : c.output[d] == clean.output[d])
                << "row " << row;
          }
        }
      }
    }
  }
}

TEST_P(AttentionHiddenTest, SeenNansAndInfinitiesFollowTheFormula) {
  std::mt19937_64 rng(kSeed);
  const float bad[] = {kNan, kInfinity, -kInfinity};
  for (int i = 0; i < Affordable(200); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomCase(rng, 130);
    // With a soft cap, an infinite score becomes finite. With ALiBi, distant
    // keys have weights that are 0 in f32 but not in double: times infinity,
    // the first gives NaN and the second infinity.
    shape.options.logits_soft_cap.reset();
    shape.options.alibi_slopes.clear();
    AttentionCase c(shape, rng());
    TypedArray* const tensors[] = {&c.query, &c.key, &c.value};
    TypedArray& tensor = *tensors[rng() % 3];
    if (tensor.size() == 0) continue;
    tensor.Set(
        static_cast<int64_t>(rng() % static_cast<uint64_t>(tensor.size())),
        bad[rng() % 3]);
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, AttentionHiddenTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

}  // namespace
}  // namespace attnd
