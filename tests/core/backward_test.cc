// Compares the backward pass of AttentionEngine with the oracle's gradients.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "core/attention_engine.h"
#include "core/reference_attention.h"
#include "tests/support/gradient_case.h"
#include "tests/support/isas.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::CaseShape;
using ::attnd::testing::GradientCase;
using ::attnd::testing::RandomGradientCase;
using ::attnd::testing::SameBits;
using ::testing::Each;
using ::testing::IsEmpty;

bool SameGradients(const GradientCase& a, const GradientCase& b) {
  return SameBits(a.grad_query, b.grad_query) &&
         SameBits(a.grad_key, b.grad_key) &&
         SameBits(a.grad_value, b.grad_value);
}

// Returns `all`, or under a sanitizer every fourth element, because the oracle
// in double precision takes minutes there.
template <class T>
std::vector<T> AffordableOf(const std::vector<T>& all) {
  constexpr size_t kStep = Affordable(10) == 10 ? 1 : 4;
  std::vector<T> some;
  for (size_t i = 0; i < all.size(); i += kStep) some.push_back(all[i]);
  return some;
}

// Returns shapes with all options. They have enough rows for products of three
// bf16 parts, if the machine has them, and cover whole tiles and blocks as well
// as their edges.
std::vector<CaseShape> LargeShapes() {
  std::vector<CaseShape> shapes;
  const auto add = [&](const AttentionOptions& options, int64_t head_dim,
                       int64_t v_head_dim, int64_t q_len, int64_t kv_len,
                       int64_t batch = 1) {
    shapes.push_back({.batch = batch,
                      .num_kv_heads = 2,
                      .group = 2,
                      .q_len = q_len,
                      .kv_len = kv_len,
                      .head_dim = head_dim,
                      .v_head_dim = v_head_dim,
                      .options = options,
                      .outputs = {.return_lse = true}});
  };
  add({}, 64, 64, 128, 256);
  add({}, 1, 33, 97, 129);
  add({}, 33, 1, 131, 31);
  add({.causal = Causal::kBottomRight}, 128, 80, 192, 320);
  add({.layout = Layout::kBshd, .causal = Causal::kTopLeft}, 80, 100, 203, 190);
  add({.scale = -0.3F, .window_left = 70, .window_right = 9}, 100, 128, 211,
      260);
  add({.window_left = 0, .window_right = 0}, 16, 16, 160, 160);
  add({.causal = Causal::kBottomRight, .logits_soft_cap = 2.0F}, 40, 48, 150,
      170);
  add({.alibi_slopes = {0.5F, 0.25F, -0.01F, 0.0F}}, 64, 32, 140, 300);
  add({.bias = TensorSpec{DataType::kF32, {4, 120, 150}}}, 64, 64, 120, 150);
  add({.causal = Causal::kTopLeft,
       .bias = TensorSpec{DataType::kBF16, {1, 250}}},
      48, 16, 100, 250);
  add({.mask = TensorSpec{DataType::kBool, {110, 200}}}, 96, 96, 110, 200);
  add({.causal = Causal::kBottomRight,
       .sink_logits = {1.0F, -2.0F, 0.0F, 3.0F},
       .mask = TensorSpec{DataType::kBool, {1, 140}}},
      32, 64, 130, 140);
  add({.causal = Causal::kBottomRight, .window_left = 1800}, 16, 16, 140, 2200);
  add({.query_lengths = {150, 60, 0}, .key_lengths = {1, 100, 180}}, 64, 48,
      150, 180, 3);
  CaseShape ragged = {.num_kv_heads = 2,
                      .group = 3,
                      .q_len = 300,
                      .kv_len = 400,
                      .head_dim = 72,
                      .v_head_dim = 56,
                      .rank = 3,
                      .options = {.causal = Causal::kBottomRight,
                                  .cu_seqlens_q = {0, 7, 7, 150, 300},
                                  .cu_seqlens_k = {0, 160, 200, 201, 400}},
                      .outputs = {.return_lse = true}};
  shapes.push_back(ragged);
  return AffordableOf(shapes);
}

class BackwardTest : public ::testing::TestWithParam<Isa> {
 protected:
  BackwardTest() : engine_({.threads = 2, .force_isa = GetParam()}) {}

  static void ComputeOn(AttentionEngine& engine, GradientCase& c) {
    c.forward.ClearOutputs();
    c.ClearGradients();
    const auto forward = engine.Run(c.forward.problem(), c.forward.buffers());
    ASSERT_TRUE(forward.ok()) << forward.status() << c.forward.ToString();
    const auto stats = engine.RunBackward(c.forward.problem(), c.buffers());
    ASSERT_TRUE(stats.ok()) << stats.status() << c.forward.ToString();
    const auto estimate =
        engine.estimator().EstimateBackward(c.forward.problem());
    EXPECT_EQ(stats->workspace_bytes, estimate.workspace_bytes);
    EXPECT_EQ(stats->flops, estimate.flops);
    const Isa isa = engine.machine().isa;
    EXPECT_EQ(stats->isa,
              stats->kernel == "backward_bf16x3" ? isa : F32Isa(isa));
  }
  void Compute(GradientCase& c) { ComputeOn(engine_, c); }

  AttentionEngine engine_;
};

TEST_P(BackwardTest, AgreesWithTheOracleOnRandomOptions) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(600); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    GradientCase c(RandomGradientCase(rng, i % 20 == 0 ? 500 : 100), rng());
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(BackwardTest, AgreesOnTilesOfManyRowsWithEveryOption) {
  for (const CaseShape& shape : LargeShapes()) {
    GradientCase c(shape, kSeed);
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(BackwardTest, MultipliesByPartsOnAmxUnlessAskedForF32) {
  for (const Precision precision : {Precision::kAuto, Precision::kF32}) {
    for (const int64_t q_len : {96, 97}) {
      GradientCase c({.q_len = q_len,
                      .kv_len = 40,
                      .head_dim = 8,
                      .v_head_dim = 8,
                      .options = {.precision = precision},
                      .outputs = {.return_lse = true}},
                     kSeed);
      Compute(c);
      const auto stats = engine_.RunBackward(c.forward.problem(), c.buffers());
      ASSERT_TRUE(stats.ok()) << stats.status();
      const bool parts = GetParam() == Isa::kAmxBf16 && q_len == 97 &&
                         precision == Precision::kAuto;
      EXPECT_EQ(stats->kernel, parts ? "backward_bf16x3" : "backward");
      EXPECT_EQ(stats->isa, parts ? Isa::kAmxBf16 : F32Isa(GetParam()));
      EXPECT_EQ(stats->tile_q, parts ? 128 : 96);
    }
  }
}

// The scores are so large that their last bit is worth more than 1, and one
// score makes up all of lse. The P of this score is 1 and all others are 0, but
// only if the backward pass computes scores with the same bits as each kind of
// forward pass.
TEST_P(BackwardTest, LargeScoresHaveTheBitsOfTheForwardPass) {
  for (const int64_t q_len : {1, 7, 48, 49, 96, 97, 130}) {
    for (const int64_t head_dim : {1, 33, 64, 100}) {
      SCOPED_TRACE(::testing::Message() << q_len << " x " << head_dim);
      GradientCase c({.q_len = q_len,
                      .kv_len = 150,
                      .head_dim = head_dim,
                      .v_head_dim = 3,
                      .options = {.scale = 1.0F},
                      .outputs = {.return_lse = true}},
                     kSeed);
      for (float& x : c.forward.query.floats()) x *= 3e4F;
      for (float& x : c.forward.key.floats()) x *= 3e4F;
      std::fill(c.grad_output.begin(), c.grad_output.end(), 1.0F);
      Compute(c);
      float total = 0;
      for (const float x : c.grad_value) total += x;
      EXPECT_EQ(total, static_cast<float>(3 * q_len));
    }
  }
}

// Covers numbers whose bf16 parts, or products of them, are too small for AMX,
// and numbers whose gradients are large.
TEST_P(BackwardTest, AgreesOnNumbersOfAnySize) {
  for (const float size :
       AffordableOf<float>({1e-30F, 1e-25F, 1e-20F, 1e-15F, 1e-10F, 1e-5F, 1e5F,
                            1e10F, 1e15F})) {
    for (int which = 0; which < 5; ++which) {
      SCOPED_TRACE(::testing::Message() << size << " in " << which);
      const bool of_scores = which < 2;
      GradientCase c({.group = 2,
                      .q_len = 100,
                      .kv_len = 140,
                      .head_dim = 20,
                      .v_head_dim = 20,
                      .options = {.scale = of_scores ? 0.2F / size : 0.2F,
                                  .causal = Causal::kBottomRight},
                      .outputs = {.return_lse = true}},
                     kSeed);
      const auto resize = [&](auto floats) {
        for (float& x : floats) x *= size;
      };
      if (which == 0) resize(c.forward.query.floats());
      if (which == 1) resize(c.forward.key.floats());
      if (which == 2) resize(c.forward.value.floats());
      if (which == 3) resize(std::span(c.grad_output));
      if (which == 4) resize(c.forward.key.floats().first(70 * 20));
      Compute(c);
      ASSERT_THAT(c.Compare(), IsEmpty());
    }
  }
}

// A number that is not finite must reach exactly those gradients that depend on
// it.
TEST_P(BackwardTest, NotFiniteReachesOnlyWhatSeesIt) {
  constexpr int64_t kDim = 24;
  for (int which = 0; which < 4; ++which) {
    GradientCase c({.q_len = 200,
                    .kv_len = 260,
                    .head_dim = kDim,
                    .v_head_dim = kDim,
                    .options = {.causal = Causal::kTopLeft, .window_left = 100},
                    .outputs = {.return_lse = true}},
                   kSeed);
    const auto set = [&](float poison) {
      const auto at = static_cast<size_t>(70 * kDim + 5);
      if (which == 0) c.forward.query.floats()[at] = poison;
      if (which == 1) c.forward.key.floats()[at] = poison;
      if (which == 2) c.forward.value.floats()[at] = poison;
      if (which == 3) c.grad_output[at] = poison;
    };
    set(kNan);
    const GradientCase::Expected expected = c.Expect();
    for (const float poison : {kNan, kInfinity, -kInfinity}) {
      SCOPED_TRACE(::testing::Message() << poison << " in " << which);
      set(poison);
      Compute(c);
      int reached = 0;
      const auto check = [&](const std::vector<float>& got,
                             const GradientCase::Gradient& want) {
        for (size_t i = 0; i < got.size(); ++i) {
          if (std::isnan(want.exact[i])) {
            ASSERT_TRUE(!std::isnan(poison) || std::isnan(got[i])) << i;
            ++reached;
          } else {
            ASSERT_LE(std::abs(double{got[i]} - want.exact[i]), want.bound[i])
                << i;
          }
        }
      };
      check(c.grad_query, expected.query);
      check(c.grad_key, expected.key);
      check(c.grad_value, expected.value);
      EXPECT_GT(reached, 0);
    }
  }
}

TEST_P(BackwardTest, AgreesAtTheEdgesOfHeadDims) {
  for (const int64_t dim : {1, 2, 15, 16, 17, 64, 127, 128, 129, 512, 1024}) {
    GradientCase c({.num_kv_heads = 2,
                    .group = 2,
                    .q_len = 19,
                    .kv_len = 70,
                    .head_dim = dim,
                    .v_head_dim = 1025 - dim,
                    .options = {.causal = Causal::kBottomRight},
                    .outputs = {.return_lse = true}},
                   kSeed);
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

// A key or value that no row sees has a gradient of 0, whatever it contains.
// The query of a row that sees nothing has a gradient of 0, whatever
// grad_output is.
TEST_P(BackwardTest, PoisonInWhatIsHiddenChangesNoBit) {
  std::mt19937_64 rng(kSeed);
  const std::vector<CaseShape> large = LargeShapes();
  int poisoned = 0;
  for (int i = 0; i < Affordable(200); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    GradientCase c(i < static_cast<int>(large.size())
                       ? large[static_cast<size_t>(i)]
                       : RandomGradientCase(rng, 100),
                   rng());
    const AttentionProblem& problem = c.forward.problem();
    const AttentionParams& p = problem.params();
    Compute(c);
    GradientCase dirty = c;
    const auto keys = problem.KeyView(dirty.forward.key.floats().data());
    const auto values = problem.ValueView(dirty.forward.value.floats().data());
    const auto rows = problem.OutputView(dirty.grad_output.data());
    const auto queries = problem.QueryView(dirty.forward.query.floats().data());
    std::vector<bool> seen(
        static_cast<size_t>(keys.shape[0] * keys.shape[1] * keys.shape[2]));
    const auto at = [&](int64_t b, int64_t h, int64_t s) {
      return static_cast<size_t>((b * keys.shape[1] + h) * keys.shape[2] + s);
    };
    for (int64_t b = 0; b < p.batch; ++b) {
      const BatchEntry entry = problem.visibility().Entry(b);
      for (int64_t h = 0; h < p.num_q_heads; ++h) {
        for (int64_t row = 0; row < entry.q_len; ++row) {
          const ReferenceRow weights =
              ReferenceWeights(problem, c.forward.buffers(), b, h, row);
          for (const ReferenceKey& key : weights.keys) {
            seen[at(entry.batch, h / p.HeadsPerGroup(),
                    entry.kv_begin + key.index)] = true;
          }
          if (!weights.keys.empty()) continue;
          const int64_t seq = entry.q_begin + row;
          std::fill_n(rows.Row(entry.batch, h, seq), p.v_head_dim, kNan);
          std::fill_n(queries.Row(entry.batch, h, seq), p.head_dim, kInfinity);
          ++poisoned;
        }
      }
    }
    for (int64_t b = 0; b < keys.shape[0]; ++b) {
      for (int64_t h = 0; h < keys.shape[1]; ++h) {
        for (int64_t s = 0; s < keys.shape[2]; ++s) {
          if (seen[at(b, h, s)]) continue;
          std::fill_n(keys.Row(b, h, s), p.head_dim, kNan);
          std::fill_n(values.Row(b, h, s), p.v_head_dim, -kInfinity);
          ++poisoned;
        }
      }
    }
    Compute(dirty);
    ASSERT_TRUE(SameGradients(c, dirty)) << c.forward.ToString();
  }
  EXPECT_GT(poisoned, Affordable(200));
}

TEST_P(BackwardTest, NoKeysAtAllGiveZeros) {
  GradientCase c({.q_len = 3,
                  .kv_len = 0,
                  .head_dim = 4,
                  .v_head_dim = 5,
                  .outputs = {.return_lse = true}},
                 kSeed);
  Compute(c);
  EXPECT_THAT(c.grad_query, Each(0.0F));
}

TEST_P(BackwardTest, SameBitsForAnyThreadsAndLoad) {
  std::vector<GradientCase> cases;
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 12; ++i) {
    cases.emplace_back(RandomGradientCase(rng, i % 4 == 0 ? 500 : 100), rng());
    Compute(cases.back());
  }
  if (GetParam() == Isa::kAmxBf16) {
    for (const CaseShape& shape : LargeShapes()) {
      cases.emplace_back(shape, kSeed);
      Compute(cases.back());
    }
  }
  for (const int threads : {1, 2, 3}) {
    AttentionEngine engine({.threads = threads, .force_isa = GetParam()});
    const auto run_all = [&] {
      for (const GradientCase& expected : cases) {
        GradientCase c = expected;
        ComputeOn(engine, c);
        EXPECT_TRUE(SameGradients(c, expected))
            << threads << " threads, " << c.forward.ToString();
      }
    };
    run_all();
    std::vector<std::thread> clients;
    clients.reserve(3);
    for (int t = 0; t < 3; ++t) clients.emplace_back(run_all);
    for (std::thread& client : clients) client.join();
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, BackwardTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

}  // namespace
}  // namespace attnd
