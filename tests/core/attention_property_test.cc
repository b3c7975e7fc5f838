// What must hold for every combination of options: the oracle's answer, and the
// same bits for what only looks different.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/attention_engine.h"
#include "core/kernel_plan.h"
#include "core/merge.h"
#include "core/reference_attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/isas.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::AttentionCase;
using ::attnd::testing::CaseShape;
using ::attnd::testing::RandomCase;
using ::attnd::testing::SameBits;
using ::attnd::testing::TypedArray;
using ::testing::IsEmpty;

// --- against the oracle ------------------------------------------------------

// Shards of a few seconds each. In each the oracle answers once for all sets.
constexpr int kShards = 20;
constexpr int kCasesPerShard = 260;

// Mostly short, for the oracle's time is quadratic. Some over several tiles,
// and some of few rows over several times the keys that a kernel takes in one
// go.
CaseShape RandomLengths(std::mt19937_64& rng) {
  if (rng() % 60 == 0) return RandomCase(rng, 4, 9000);
  return RandomCase(rng, rng() % 20 == 0 ? 700 : 130);
}

class RandomOptionsTest : public ::testing::TestWithParam<int> {};

TEST_P(RandomOptionsTest, AgreeWithTheOracleOnEverySet) {
  std::vector<std::unique_ptr<AttentionEngine>> engines;
  for (const Isa isa : testing::TestedIsas()) {
    engines.push_back(std::make_unique<AttentionEngine>(
        EngineOptions{.threads = 2, .force_isa = isa}));
  }
  const uint64_t seed = kSeed + static_cast<uint64_t>(GetParam());
  std::mt19937_64 rng(seed);
  for (int i = 0; i < Affordable(kCasesPerShard); ++i) {
    AttentionCase c(RandomLengths(rng), rng());
    const AttentionCase::Expected expected = c.Expect();
    for (const auto& engine : engines) {
      SCOPED_TRACE(::testing::Message()
                   << "seed " << seed << " case " << i << " on "
                   << IsaName(engine->machine().isa));
      c.ClearOutputs();
      const auto stats = engine->Run(c.problem(), c.buffers());
      ASSERT_TRUE(stats.ok()) << stats.status() << c.ToString();
      EXPECT_EQ(stats->isa, MakeKernelPlan(c.problem(), engine->machine()).isa);
      EXPECT_EQ(stats->workspace_bytes,
                engine->estimator().Estimate(c.problem())->workspace_bytes);
      ASSERT_THAT(c.Compare(expected), IsEmpty());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shard, RandomOptionsTest,
                         ::testing::Range(0, kShards));

// --- one set at a time -------------------------------------------------------

class AttentionPropertyTest : public ::testing::TestWithParam<Isa> {
 protected:
  AttentionPropertyTest() : engine_({.threads = 2, .force_isa = GetParam()}) {}

  void Compute(AttentionCase& c) {
    c.ClearOutputs();
    const auto stats = engine_.Run(c.problem(), c.buffers());
    ASSERT_TRUE(stats.ok()) << stats.status() << " " << c.ToString();
  }

  AttentionEngine engine_;
};

// Copies element by element what two views of one problem's shape, in whatever
// order of axes, have in common.
template <typename From, typename To>
void CopyView(const TypedArray& from, const TensorView<From>& from_view,
              TypedArray& to, const TensorView<To>& to_view) {
  for (int64_t b = 0; b < to_view.shape[0]; ++b) {
    for (int64_t h = 0; h < to_view.shape[1]; ++h) {
      for (int64_t s = 0; s < to_view.shape[2]; ++s) {
        for (int64_t d = 0; d < to_view.shape[3]; ++d) {
          to.Set(to_view.Offset(b, h, s) + d,
                 from[from_view.Offset(b, h, s) + d]);
        }
      }
    }
  }
}

// Sets every element of a key or value row.
template <typename T>
void FillRow(TypedArray& array, const TensorView<T>& view, int64_t batch,
             int64_t head, int64_t seq, float value) {
  for (int64_t d = 0; d < view.shape[3]; ++d) {
    array.Set(view.Offset(batch, head, seq) + d, value);
  }
}

TEST_P(AttentionPropertyTest, OrderOfAxesChangesNoBit) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(100); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomCase(rng, 130);
    shape.options.layout = Layout::kBhsd;
    AttentionCase a(shape, rng());
    shape.options.layout = Layout::kBshd;
    AttentionCase b(shape, rng());
    const AttentionProblem& pa = a.problem();
    const AttentionProblem& pb = b.problem();
    CopyView(a.query, pa.QueryView(a.query.data()), b.query,
             pb.QueryView(b.query.data()));
    CopyView(a.key, pa.KeyView(a.key.data()), b.key, pb.KeyView(b.key.data()));
    CopyView(a.value, pa.ValueView(a.value.data()), b.value,
             pb.ValueView(b.value.data()));
    b.bias = a.bias;
    b.mask = a.mask;
    Compute(a);
    Compute(b);
    TypedArray expected = b.output;
    CopyView(a.output, pa.OutputView(a.output.data()), expected,
             pb.OutputView(expected.data()));
    ASSERT_TRUE(b.output == expected) << a.ToString();
    if (shape.options.return_lse) {
      ASSERT_TRUE(SameBits(a.lse, b.lse)) << a.ToString();
    }
  }
}

// A batch padded to its longest entry, with lengths, and the same entries
// packed end to end.
TEST_P(AttentionPropertyTest, PaddingAndRaggedBatchesAreTheSameBits) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(60); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape ragged;
    do {
      ragged = RandomCase(rng, 130);
    } while (ragged.options.cu_seqlens_q.size() < 2 || ragged.rank != 3);
    const std::vector<int64_t> cu_q = ragged.options.cu_seqlens_q;
    const std::vector<int64_t> cu_k = ragged.options.cu_seqlens_k;
    CaseShape padded = ragged;
    padded.rank = 4;
    padded.batch = static_cast<int64_t>(cu_q.size()) - 1;
    padded.q_len = padded.kv_len = 3;
    padded.options.cu_seqlens_q.clear();
    padded.options.cu_seqlens_k.clear();
    for (size_t b = 0; b + 1 < cu_q.size(); ++b) {
      padded.options.query_lengths.push_back(cu_q[b + 1] - cu_q[b]);
      padded.options.key_lengths.push_back(cu_k[b + 1] - cu_k[b]);
      padded.q_len = std::max(padded.q_len, cu_q[b + 1] - cu_q[b]);
      padded.kv_len = std::max(padded.kv_len, cu_k[b + 1] - cu_k[b]);
    }
    AttentionCase r(ragged, rng());
    AttentionCase p(padded, rng());
    // What lies in the padding must not matter.
    for (TypedArray* padding : {&p.query, &p.key, &p.value}) {
      padding->Fill(kNan);
    }
    const auto copy = [&](const TypedArray& from, const auto& from_view,
                          TypedArray& to, const auto& to_view,
                          const std::vector<int64_t>& cu) {
      for (int64_t b = 0; b < padded.batch; ++b) {
        const int64_t begin = cu[static_cast<size_t>(b)];
        const int64_t end = cu[static_cast<size_t>(b) + 1];
        for (int64_t h = 0; h < to_view.shape[1]; ++h) {
          for (int64_t s = begin; s < end; ++s) {
            for (int64_t d = 0; d < to_view.shape[3]; ++d) {
              to.Set(to_view.Offset(b, h, s - begin) + d,
                     from[from_view.Offset(0, h, s) + d]);
            }
          }
        }
      }
    };
    const AttentionProblem& pr = r.problem();
    const AttentionProblem& pp = p.problem();
    copy(r.query, pr.QueryView(r.query.data()), p.query,
         pp.QueryView(p.query.data()), cu_q);
    copy(r.key, pr.KeyView(r.key.data()), p.key, pp.KeyView(p.key.data()),
         cu_k);
    copy(r.value, pr.ValueView(r.value.data()), p.value,
         pp.ValueView(p.value.data()), cu_k);
    Compute(r);
    Compute(p);
    // Rows beyond a length see nothing; all others are the ragged batch's.
    TypedArray expected = p.output;
    expected.Fill(0);
    copy(r.output, pr.OutputView(r.output.data()), expected,
         pp.OutputView(expected.data()), cu_q);
    ASSERT_TRUE(p.output == expected) << r.ToString();
    if (!ragged.options.return_lse) continue;
    const auto lse_r = pr.LseView(r.lse.data());
    const auto lse_p = pp.LseView(p.lse.data());
    for (int64_t b = 0; b < padded.batch; ++b) {
      const int64_t begin = cu_q[static_cast<size_t>(b)];
      const int64_t length = cu_q[static_cast<size_t>(b) + 1] - begin;
      for (int64_t h = 0; h < lse_p.shape[1]; ++h) {
        const float nothing =
            ragged.options.sink_logits.empty()
                ? -kInfinity
                : ragged.options.sink_logits[static_cast<size_t>(h)];
        for (int64_t s = 0; s < padded.q_len; ++s) {
          ASSERT_EQ(*lse_p.Row(b, h, s),
                    s < length ? *lse_r.Row(0, h, begin + s) : nothing)
              << r.ToString();
        }
      }
    }
  }
}

// A mask that hides what position and lengths hid before.
std::vector<std::byte> MaskOf(const AttentionCase& c) {
  const AttentionParams& p = c.problem().params();
  std::vector<std::byte> mask;
  for (int64_t b = 0; b < p.batch; ++b) {
    const BatchEntry entry = c.problem().mask().Entry(b);
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      for (int64_t i = 0; i < p.q_len; ++i) {
        const KeyRange seen = entry.VisibleRange(i);
        for (int64_t j = 0; j < p.kv_len; ++j) {
          mask.push_back(seen.begin <= j && j < seen.end ? std::byte{1}
                                                         : std::byte{0});
        }
      }
    }
  }
  return mask;
}

// Also with scores adjusted, since a bias or mask of its own may take another
// path through a kernel; without, the two paths differ and only the bound
// holds.
TEST_P(AttentionPropertyTest, CausalAndWindowsEqualAnExplicitMask) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(100); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomCase(rng, 130);
    AttentionOptions& o = shape.options;
    if (!o.cu_seqlens_q.empty()) continue;
    o.alibi_slopes.clear();  // counts from the position that causal says
    o.mask_shape.reset();
    const std::vector<int64_t> full = {shape.batch,
                                       shape.num_kv_heads * shape.group,
                                       shape.q_len, shape.kv_len};
    // All true: what the visibility of the first comes from is its positions.
    o.mask_shape = full;
    const uint64_t seed = rng();
    AttentionCase positions(shape, seed);
    std::fill(positions.mask.begin(), positions.mask.end(), std::byte{1});
    o.causal = Causal::kNone;
    o.window_left.reset();
    o.window_right.reset();
    o.query_offsets.clear();
    // Lengths stay: the plan goes by them.
    AttentionCase masked(shape, seed);
    masked.mask = MaskOf(positions);
    Compute(positions);
    Compute(masked);
    ASSERT_THAT(masked.Compare(positions.Expect()), IsEmpty());
    ASSERT_TRUE(masked.output == positions.output) << positions.ToString();
    if (o.return_lse) {
      ASSERT_TRUE(SameBits(masked.lse, positions.lse)) << positions.ToString();
    }
  }
}

// The heads of a group are rows of one matrix, and a row's bits must not depend
// on its neighbours; but tiles do depend on the group, so the bound holds.
TEST_P(AttentionPropertyTest, GroupedHeadsEqualRepeatedHeads) {
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
    Compute(r);
    ASSERT_THAT(r.Compare(g.Expect()), IsEmpty()) << g.ToString();
  }
}

// Keys in another order, with what belongs to them: the same sums in another
// order. Only what hides by position must go.
TEST_P(AttentionPropertyTest, PermutedKeysGiveTheSameWithinTheBound) {
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
    // The last axis of bias and mask, where they have one of kv_len.
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
    if (o.mask_shape && per_key(*o.mask_shape)) {
      for (size_t at = 0; at < b.mask.size(); ++at) {
        b.mask[at] =
            a.mask[static_cast<size_t>(moved_from(static_cast<int64_t>(at)))];
      }
    }
    Compute(b);
    ASSERT_THAT(b.Compare(a.Expect()), IsEmpty()) << a.ToString();
  }
}

// Attention over two pieces of the keys, merged by lse, is attention over all.
TEST_P(AttentionPropertyTest, SplitKeysMergeToTheWhole) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(60); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomCase(rng, 130);
    if (!shape.options.cu_seqlens_q.empty()) continue;
    shape.options.layout = Layout::kBhsd;
    shape.options.output_dtype = DataType::kF32;
    shape.options.return_lse = true;
    AttentionCase whole(shape, rng());
    const AttentionParams& p = whole.problem().params();
    const AttentionCase::Expected expected = whole.Expect();
    // Pieces are chosen by a mask beside all else that hides.
    const std::vector<int64_t> full = {p.batch, p.num_q_heads, p.q_len,
                                       p.kv_len};
    CaseShape part = shape;
    part.options.mask_shape = full;
    const auto old_mask = p.has_mask
                              ? whole.problem().MaskView(whole.mask.data())
                              : TensorView<std::byte>{};
    const int64_t pieces = 1 + static_cast<int64_t>(rng() % 4);
    std::vector<std::vector<float>> outputs;
    std::vector<std::vector<float>> lses;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      // A sink enters one of them.
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
    // A piece errs in its output, which is off by no more than the whole's may
    // be, and in its lse, which is the weight that its output gets.
    AttentionCase::Expected loose = expected;
    for (double& bound : loose.output_bound) bound *= 2;
    for (double& bound : loose.lse_bound) bound *= 2;
    ASSERT_THAT(whole.Compare(loose), IsEmpty());
  }
}

// --- what is hidden ----------------------------------------------------------

// The pairs that no formula lets through: every key that no row of any head of
// its group sees gets NaN and inf, and no bit may change.
TEST_P(AttentionPropertyTest, PoisonInHiddenKeysChangesNoBit) {
  std::mt19937_64 rng(kSeed);
  int poisoned = 0;
  for (int i = 0; i < Affordable(300); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomCase(rng, 130), rng());
    const AttentionProblem& problem = c.problem();
    const AttentionParams& p = problem.params();
    Compute(c);
    const TypedArray output = c.output;
    const std::vector<float> lse = c.lse;
    const auto keys = problem.KeyView(c.key.data());
    const auto values = problem.ValueView(c.value.data());
    // By batch, kv head and place along seq.
    std::vector<bool> seen(
        static_cast<size_t>(keys.shape[0] * keys.shape[1] * keys.shape[2]));
    const auto at = [&](int64_t b, int64_t h, int64_t s) {
      return static_cast<size_t>((b * keys.shape[1] + h) * keys.shape[2] + s);
    };
    for (int64_t b = 0; b < p.batch; ++b) {
      const BatchEntry entry = problem.mask().Entry(b);
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
    for (int64_t b = 0; b < keys.shape[0]; ++b) {
      for (int64_t h = 0; h < keys.shape[1]; ++h) {
        for (int64_t s = 0; s < keys.shape[2]; ++s) {
          if (seen[at(b, h, s)]) continue;
          ++poisoned;
          FillRow(c.key, keys, b, h, s, s % 2 == 0 ? kNan : kInfinity);
          FillRow(c.value, values, b, h, s, s % 3 == 0 ? -kInfinity : kNan);
        }
      }
    }
    Compute(c);
    ASSERT_TRUE(c.output == output) << c.ToString();
    if (p.return_lse) {
      ASSERT_TRUE(SameBits(c.lse, lse)) << c.ToString();
    }
  }
  EXPECT_GT(poisoned, Affordable(300));
}

struct Hiding {
  const char* name;
  AttentionOptions options;
};

constexpr int64_t kRows = 70;
constexpr int64_t kKeys = 150;

// Each way to hide, alone and with adjusted scores.
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
      {"mask", {.mask_shape = {{1, 1, kRows, kKeys}}}},
      {"mask of keys", {.mask_shape = {{kKeys}}}},
      {"mask of rows", {.mask_shape = {{kRows, 1}}}},
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

// One poisoned key at a time, seen by some rows and hidden from others in the
// same tile: the rows that see it are NaN whole, of all others no bit changes.
TEST_P(AttentionPropertyTest, AKeyOfNanReachesTheRowsThatSeeItAlone) {
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
      shape.options.return_lse = true;
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

TEST_P(AttentionPropertyTest, SeenNansAndInfinitiesFollowTheFormula) {
  std::mt19937_64 rng(kSeed);
  const float bad[] = {kNan, kInfinity, -kInfinity};
  for (int i = 0; i < Affordable(200); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomCase(rng, 130);
    // tanh(inf) is a number, and far-off keys have weights that f32 rounds to 0
    // where double does not: times inf these are NaN and inf.
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

// --- determinism -------------------------------------------------------------

TEST_P(AttentionPropertyTest, SameBitsForAnyThreadsAndLoad) {
  constexpr int kCases = 24;
  std::vector<AttentionCase> cases;
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < kCases; ++i) {
    cases.emplace_back(RandomCase(rng, i % 4 == 0 ? 700 : 130), rng());
    Compute(cases.back());
  }
  for (const int threads : {1, 2, 3}) {
    AttentionEngine engine({.threads = threads, .force_isa = GetParam()});
    const auto run_all = [&] {
      for (const AttentionCase& expected : cases) {
        AttentionCase c = expected;
        c.ClearOutputs();
        ASSERT_TRUE(engine.Run(c.problem(), c.buffers()).ok());
        EXPECT_TRUE(c.output == expected.output)
            << threads << " threads, " << c.ToString();
        if (c.shape().options.return_lse) {
          EXPECT_TRUE(SameBits(c.lse, expected.lse)) << c.ToString();
        }
      }
    };
    run_all();
    // Under load: the cases share the workers with each other.
    std::vector<std::thread> clients;
    clients.reserve(3);
    for (int t = 0; t < 3; ++t) clients.emplace_back(run_all);
    for (std::thread& client : clients) client.join();
  }
}

// Each entry of a batch alone: its own options, its own bits.
TEST_P(AttentionPropertyTest, SameBitsWithoutBatchNeighbours) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(60); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomCase(rng, 130);
    // Of a ragged batch too.
    const bool ragged = !shape.options.cu_seqlens_q.empty();
    AttentionCase whole(shape, rng());
    const AttentionProblem& problem = whole.problem();
    Compute(whole);
    for (int64_t b = 0; b < problem.params().batch; ++b) {
      const auto index = static_cast<size_t>(b);
      const BatchEntry entry = problem.mask().Entry(b);
      CaseShape alone = shape;
      AttentionOptions& o = alone.options;
      alone.batch = 1;
      const auto pick = [&](auto& list) {
        if (list.size() > 1) list = {list[index]};
      };
      pick(o.query_offsets);
      pick(o.query_lengths);
      pick(o.key_lengths);
      if (ragged) {
        alone.q_len = entry.q_len;
        alone.kv_len = entry.kv_len;
        o.cu_seqlens_q = {0, entry.q_len};
        o.cu_seqlens_k = {0, entry.kv_len};
      }
      const auto one_entry = [&](std::vector<int64_t>& extents) {
        if (extents.size() == 4) extents[0] = 1;
      };
      if (o.bias) one_entry(o.bias->shape);
      if (o.mask_shape) one_entry(*o.mask_shape);
      AttentionCase c(alone, 0);
      const AttentionProblem& one = c.problem();
      const auto copy = [](const TypedArray& from, const auto& from_view,
                           int64_t batch, int64_t begin, TypedArray& to,
                           const auto& to_view) {
        for (int64_t h = 0; h < to_view.shape[1]; ++h) {
          for (int64_t s = 0; s < to_view.shape[2]; ++s) {
            for (int64_t d = 0; d < to_view.shape[3]; ++d) {
              to.Set(to_view.Offset(0, h, s) + d,
                     from[from_view.Offset(batch, h, begin + s) + d]);
            }
          }
        }
      };
      copy(whole.query, problem.QueryView(whole.query.data()), entry.batch,
           entry.q_begin, c.query, one.QueryView(c.query.data()));
      copy(whole.key, problem.KeyView(whole.key.data()), entry.batch,
           entry.kv_begin, c.key, one.KeyView(c.key.data()));
      copy(whole.value, problem.ValueView(whole.value.data()), entry.batch,
           entry.kv_begin, c.value, one.ValueView(c.value.data()));
      if (o.bias) {
        const int64_t first =
            problem.BiasView(whole.bias.data()).Offset(entry.batch, 0, 0);
        for (int64_t at = 0; at < c.bias.size(); ++at) {
          c.bias.Set(at, whole.bias[first + at]);
        }
      }
      if (o.mask_shape) {
        const int64_t first =
            problem.MaskView(whole.mask.data()).Offset(entry.batch, 0, 0);
        std::copy_n(whole.mask.begin() + first, c.mask.size(), c.mask.begin());
      }
      Compute(c);
      TypedArray expected = c.output;
      copy(whole.output, problem.OutputView(whole.output.data()), entry.batch,
           entry.q_begin, expected, one.OutputView(expected.data()));
      ASSERT_TRUE(c.output == expected) << whole.ToString() << " entry " << b;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, AttentionPropertyTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

}  // namespace
}  // namespace attnd
