// Tests that an answer has the same bits when the same problem is given in
// another form, and whatever else the engine computes at the same time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "core/attention_engine.h"
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

// Copies to each element of `to` the element of `from` that has the same
// indices. The views can order their axes differently in memory.
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

class AttentionBitsTest : public testing::PerIsaEngineTest {
 protected:
  // Checks that a ragged batch gives the same bits as a padded batch with the
  // same entries and with their lengths. Each entry is padded to at least
  // `longest` rows.
  void ExpectPaddingIsRagged(const CaseShape& ragged, int64_t longest,
                             float size, uint64_t seed) {
    const std::vector<int64_t> cu_q = ragged.options.cu_seqlens_q;
    const std::vector<int64_t> cu_k = ragged.options.cu_seqlens_k;
    CaseShape padded = ragged;
    padded.rank = 4;
    padded.batch = static_cast<int64_t>(cu_q.size()) - 1;
    padded.q_len = longest;
    padded.kv_len = 3;
    padded.options.cu_seqlens_q.clear();
    padded.options.cu_seqlens_k.clear();
    for (size_t b = 0; b + 1 < cu_q.size(); ++b) {
      padded.options.query_lengths.push_back(cu_q[b + 1] - cu_q[b]);
      padded.options.key_lengths.push_back(cu_k[b + 1] - cu_k[b]);
      padded.q_len = std::max(padded.q_len, cu_q[b + 1] - cu_q[b]);
      padded.kv_len = std::max(padded.kv_len, cu_k[b + 1] - cu_k[b]);
    }
    AttentionCase r(ragged, seed);
    AttentionCase p(padded, seed);
    r.Scale(size);
    // The contents of the padding must not matter.
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
    // Rows beyond an entry's length see nothing. All other rows must equal
    // those of the ragged batch.
    TypedArray expected = p.output;
    expected.Fill(0);
    copy(r.output, pr.OutputView(r.output.data()), expected,
         pp.OutputView(expected.data()), cu_q);
    ASSERT_TRUE(p.output == expected) << r.ToString();
    if (!ragged.outputs.return_lse) return;
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

  // Checks that each entry of a batch, computed alone with its own options, has
  // the same bits as in the batch.
  void ExpectAloneIsTheSame(const CaseShape& shape, float size, uint64_t seed) {
    // The batch can be ragged.
    const bool ragged = !shape.options.cu_seqlens_q.empty();
    AttentionCase whole(shape, seed);
    whole.Scale(size);
    const AttentionProblem& problem = whole.problem();
    Compute(whole);
    for (int64_t b = 0; b < problem.params().batch; ++b) {
      const auto index = static_cast<size_t>(b);
      const BatchEntry entry = problem.visibility().Entry(b);
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
      if (o.mask) one_entry(o.mask->shape);
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
      if (o.mask) {
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
};

TEST_P(AttentionBitsTest, OrderOfAxesChangesNoBit) {
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
    if (shape.outputs.return_lse) {
      ASSERT_TRUE(SameBits(a.lse, b.lse)) << a.ToString();
    }
  }
}

TEST_P(AttentionBitsTest, PaddingAndRaggedBatchesAreTheSameBits) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(60); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape ragged;
    do {
      ragged = RandomCase(rng, 130);
    } while (ragged.options.cu_seqlens_q.size() < 2 || ragged.rank != 3);
    ExpectPaddingIsRagged(ragged, 3, 1, rng());
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionBitsTest, PaddingBesideSplitTilesIsTheSameBits) {
  for (const float size : testing::kSplitSizes) {
    ExpectPaddingIsRagged(
        {.num_kv_heads = 2,
         .q_len = 363,
         .kv_len = 15017,
         .head_dim = 8,
         .v_head_dim = 20,
         .rank = 3,
         .options = {.causal = Causal::kBottomRight,
                     .cu_seqlens_q = {0, 60, 63, 163, 363},
                     .cu_seqlens_k = {0, 5000, 5017, 10017, 15017}},
         .outputs = {.return_lse = true}},
        1024, size, kSeed);
    if (HasFatalFailure()) return;
  }
}

// Returns a mask that hides the keys that positions and lengths hide in `c`.
std::vector<std::byte> MaskOf(const AttentionCase& c) {
  const AttentionParams& p = c.problem().params();
  std::vector<std::byte> mask;
  for (int64_t b = 0; b < p.batch; ++b) {
    const BatchEntry entry = c.problem().visibility().Entry(b);
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

// Both cases have a mask. A case without one can take another path through a
// kernel, and then the bits can differ within the bound.
TEST_P(AttentionBitsTest, CausalAndWindowsEqualAnExplicitMask) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(100); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    CaseShape shape = RandomCase(rng, 130);
    AttentionOptions& o = shape.options;
    if (!o.cu_seqlens_q.empty()) continue;
    o.alibi_slopes.clear();  // counts from the position that causal says
    o.mask.reset();
    const std::vector<int64_t> full = {shape.batch,
                                       shape.num_kv_heads * shape.group,
                                       shape.q_len, shape.kv_len};
    // All true: what the visibility of the first comes from is its positions.
    o.mask = TensorSpec{DataType::kBool, full};
    const uint64_t seed = rng();
    AttentionCase positions(shape, seed);
    std::fill(positions.mask.begin(), positions.mask.end(), std::byte{1});
    o.causal = Causal::kNone;
    o.window_left.reset();
    o.window_right.reset();
    o.query_offsets.clear();
    // The lengths stay, because the kernel plan depends on them.
    AttentionCase masked(shape, seed);
    masked.mask = MaskOf(positions);
    Compute(positions);
    Compute(masked);
    ASSERT_THAT(masked.Compare(positions.Expect()), IsEmpty());
    ASSERT_TRUE(masked.output == positions.output) << positions.ToString();
    if (shape.outputs.return_lse) {
      ASSERT_TRUE(SameBits(masked.lse, positions.lse)) << positions.ToString();
    }
  }
}

TEST_P(AttentionBitsTest, SameBitsForAnyThreadsAndLoad) {
  constexpr int kCases = 24;
  std::vector<AttentionCase> cases;
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < kCases; ++i) {
    cases.emplace_back(RandomCase(rng, i % 4 == 0 ? 700 : 130), rng());
    Compute(cases.back());
  }
  for (const CaseShape& shape : SplitShapes()) {
    for (const float size : testing::kSplitSizes) {
      cases.emplace_back(shape, rng());
      cases.back().Scale(size);
      Compute(cases.back());
    }
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
        if (c.shape().outputs.return_lse) {
          EXPECT_TRUE(SameBits(c.lse, expected.lse)) << c.ToString();
        }
      }
    };
    run_all();
    // This is the test under load, because the cases share the workers.
    std::vector<std::thread> clients;
    clients.reserve(3);
    for (int t = 0; t < 3; ++t) clients.emplace_back(run_all);
    for (std::thread& client : clients) client.join();
  }
}

TEST_P(AttentionBitsTest, SameBitsWithoutBatchNeighbours) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(60); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    const CaseShape shape = RandomCase(rng, 130);
    ExpectAloneIsTheSame(shape, 1, rng());
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionBitsTest, SplitTilesHaveTheSameBitsWithoutBatchNeighbours) {
  for (const float size : testing::kSplitSizes) {
    ExpectAloneIsTheSame(SplitShapes().back(), size, kSeed);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, AttentionBitsTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

}  // namespace
}  // namespace attnd
