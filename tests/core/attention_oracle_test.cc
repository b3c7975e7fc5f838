// Compares the answers to random combinations of all options with those of the
// oracle.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/attention_engine.h"
#include "core/kernel_plan.h"
#include "core/merge.h"
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
using ::attnd::testing::SplitShapes;
using ::attnd::testing::TypedArray;
using ::testing::IsEmpty;

// Each shard takes a few seconds. In each case the oracle answers once for all
// instruction sets.
constexpr int kShards = 20;
constexpr int kCasesPerShard = 260;

// Most lengths are short, because the time of the oracle is quadratic. Some
// cover several tiles. Some cases have few rows, and several times as many keys
// as a kernel takes in one split.
CaseShape RandomLengths(std::mt19937_64& rng) {
  if (rng() % 60 == 0) return RandomCase(rng, 4, 9000);
  return RandomCase(rng, rng() % 20 == 0 ? 700 : 130);
}

class RandomOptionsTest : public ::testing::TestWithParam<int> {};

class EveryIsa {
 public:
  EveryIsa() {
    for (const Isa isa : testing::TestedIsas()) {
      engines_.push_back(std::make_unique<AttentionEngine>(
          EngineOptions{.threads = 2, .force_isa = isa}));
    }
  }

  // Asks the oracle only once.
  void Check(AttentionCase& c) const {
    const AttentionCase::Expected expected = c.Expect();
    for (const auto& engine : engines_) {
      SCOPED_TRACE(IsaName(engine->machine().isa));
      c.ClearOutputs();
      const auto stats = engine->Run(c.problem(), c.buffers());
      ASSERT_TRUE(stats.ok()) << stats.status() << c.ToString();
      EXPECT_EQ(stats->isa, MakeKernelPlan(c.problem(), engine->machine()).isa);
      ASSERT_THAT(c.Compare(expected), IsEmpty());
    }
  }

 private:
  std::vector<std::unique_ptr<AttentionEngine>> engines_;
};

TEST_P(RandomOptionsTest, AgreeWithTheOracleOnEverySet) {
  const EveryIsa every;
  const uint64_t seed = kSeed + static_cast<uint64_t>(GetParam());
  std::mt19937_64 rng(seed);
  for (int i = 0; i < Affordable(kCasesPerShard); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed << " case " << i);
    AttentionCase c(RandomLengths(rng), rng());
    every.Check(c);
    if (HasFatalFailure()) return;
  }
}

TEST(SplitShapesTest, AgreeWithTheOracleOnEverySet) {
  const EveryIsa every;
  for (const CaseShape& shape : SplitShapes()) {
    for (const float size : testing::kSplitSizes) {
      SCOPED_TRACE(size);
      AttentionCase c(shape, kSeed);
      c.Scale(size);
      every.Check(c);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shard, RandomOptionsTest,
                         ::testing::Range(0, kShards));

class AttentionOracleTest : public testing::PerIsaEngineTest {};

// The heads of a group are rows of one matrix, and no row may affect another.
// The tiles depend on the size of the group, so the answers are compared within
// the bound and not by their bits.
TEST_P(AttentionOracleTest, GroupedHeadsEqualRepeatedHeads) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(60); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    const CaseShape grouped = RandomCase(rng, 130);
    CaseShape repeated = grouped;
    repeated.num_kv_heads *= repeated.group;
    repeated.group = 1;
    AttentionCase g(grouped, rng());
    AttentionCase r(repeated, rng());
    const auto repeat = [&](const TypedArray& from, const auto& from_view,
                            TypedArray& to, const auto& to_view) {
      for (int64_t b = 0; b < to_view.shape[0]; ++b) {
        for (int64_t h = 0; h < to_view.shape[1]; ++h) {
          for (int64_t s = 0; s < to_view.shape[2]; ++s) {
            for (int64_t d = 0; d < to_view.shape[3]; ++d) {
              to.Set(to_view.Offset(b, h, s) + d,
                     from[from_view.Offset(b, h / grouped.group, s) + d]);
            }
          }
        }
      }
    };
    const AttentionProblem& pg = g.problem();
    const AttentionProblem& pr = r.problem();
    r.query = g.query;
    r.bias = g.bias;
    r.mask = g.mask;
    repeat(g.key, pg.KeyView(g.key.data()), r.key, pr.KeyView(r.key.data()));
    repeat(g.value, pg.ValueView(g.value.data()), r.value,
           pr.ValueView(r.value.data()));
    const AttentionCase::Expected expected = g.Expect();
    Compute(g);
    Compute(r);
    ASSERT_THAT(g.Compare(expected), IsEmpty());
    ASSERT_THAT(r.Compare(expected), IsEmpty());
  }
}

// Reorders the keys together with everything that belongs to them, which only
// changes the order of the sums. Options that hide keys by position are
// removed.
TEST_P(AttentionOracleTest, PermutedKeysGiveTheSameWithinTheBound) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(60); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomCase(rng, 130);
    AttentionOptions& o = shape.options;
    o.causal = Causal::kNone;
    o.window_left.reset();
    o.window_right.reset();
    o.key_lengths.clear();
    o.alibi_slopes.clear();
    if (!o.cu_seqlens_q.empty()) continue;
    const uint64_t seed = rng();
    AttentionCase a(shape, seed);
    AttentionCase b(shape, seed);
    std::vector<int64_t> order(static_cast<size_t>(shape.kv_len));
    for (size_t j = 0; j < order.size(); ++j) {
      order[j] = static_cast<int64_t>(j);
    }
    std::shuffle(order.begin(), order.end(), rng);
    const auto permute_rows = [&](const TypedArray& from, TypedArray& to,
                                  const auto& view) {
      for (int64_t x = 0; x < view.shape[0]; ++x) {
        for (int64_t h = 0; h < view.shape[1]; ++h) {
          for (int64_t s = 0; s < view.shape[2]; ++s) {
            for (int64_t d = 0; d < view.shape[3]; ++d) {
              to.Set(
                  view.Offset(x, h, s) + d,
                  from[view.Offset(x, h, order[static_cast<size_t>(s)]) + d]);
            }
          }
        }
      }
    };
    const AttentionProblem& p = a.problem();
    permute_rows(a.key, b.key, p.KeyView(a.key.data()));
    permute_rows(a.value, b.value, p.ValueView(a.value.data()));
    // This applies to bias and mask if their last axis has kv_len elements.
    const auto per_key = [&](const std::vector<int64_t>& extents) {
      return !extents.empty() && extents.back() == shape.kv_len;
    };
    const auto moved_from = [&](int64_t at) {
      return at - at % shape.kv_len +
             order[static_cast<size_t>(at % shape.kv_len)];
    };
    if (o.bias && per_key(o.bias->shape)) {
      for (int64_t at = 0; at < b.bias.size(); ++at) {
        b.bias.Set(at, a.bias[moved_from(at)]);
      }
    }
    if (o.mask && per_key(o.mask->shape)) {
      for (size_t at = 0; at < b.mask.size(); ++at) {
        b.mask[at] =
            a.mask[static_cast<size_t>(moved_from(static_cast<int64_t>(at)))];
      }
    }
    Compute(b);
    ASSERT_THAT(b.Compare(a.Expect()), IsEmpty()) << a.ToString();
  }
}

// Attention over pieces of the keys, merged by their lse, must equal attention
// over all keys.
TEST_P(AttentionOracleTest, SplitKeysMergeToTheWhole) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(60); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomCase(rng, 130);
    if (!shape.options.cu_seqlens_q.empty()) continue;
    shape.options.layout = Layout::kBhsd;
    shape.outputs.output_dtype = DataType::kF32;
    shape.outputs.return_lse = true;
    AttentionCase whole(shape, rng());
    const AttentionParams& p = whole.problem().params();
    const AttentionCase::Expected expected = whole.Expect();
    // A mask selects each piece, in addition to everything else that hides
    // keys.
    const std::vector<int64_t> full = {p.batch, p.num_q_heads, p.q_len,
                                       p.kv_len};
    CaseShape part = shape;
    part.options.mask = TensorSpec{DataType::kBool, full};
    const auto old_mask = p.has_mask
                              ? whole.problem().MaskView(whole.mask.data())
                              : TensorView<std::byte>{};
    const int64_t pieces = 1 + static_cast<int64_t>(rng() % 4);
    std::vector<std::vector<float>> outputs;
    std::vector<std::vector<float>> lses;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      // The sink takes part in only one of the pieces.
      if (piece > 0) part.options.sink_logits.clear();
      AttentionCase c(part, 0);
      c.query = whole.query;
      c.key = whole.key;
      c.value = whole.value;
      c.bias = whole.bias;
      size_t at = 0;
      for (int64_t b = 0; b < p.batch; ++b) {
        for (int64_t h = 0; h < p.num_q_heads; ++h) {
          for (int64_t s = 0; s < p.q_len; ++s) {
            for (int64_t j = 0; j < p.kv_len; ++j) {
              const bool seen =
                  j % pieces == piece &&
                  (!p.has_mask ||
                   old_mask.Row(b, h, s)[j * old_mask.strides[3]] !=
                       std::byte{0});
              c.mask[at++] = seen ? std::byte{1} : std::byte{0};
            }
          }
        }
      }
      Compute(c);
      outputs.emplace_back(c.output.floats().begin(), c.output.floats().end());
      lses.push_back(c.lse);
    }
    std::vector<PartialResult> partials;
    partials.reserve(outputs.size());
    for (size_t piece = 0; piece < outputs.size(); ++piece) {
      partials.push_back({outputs[piece].data(), lses[piece].data()});
    }
    MergePartials(partials, p.batch * p.num_q_heads * p.q_len, p.v_head_dim,
                  reinterpret_cast<float*>(whole.output.data()),
                  whole.lse.data());
    // A piece has an error in its output, which is at most the bound of the
    // whole, and one in its lse, which determines the weight of its output.
    AttentionCase::Expected loose = expected;
    for (double& bound : loose.output_bound) bound *= 2;
    for (double& bound : loose.lse_bound) bound *= 2;
    ASSERT_THAT(whole.Compare(loose), IsEmpty());
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, AttentionOracleTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

}  // namespace
}  // namespace attnd
