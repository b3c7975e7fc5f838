// The backward pass of AttentionEngine against the oracle's gradients.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "core/attention_engine.h"
#include "core/reference_attention.h"
#include "tests/support/gradient_case.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::GradientCase;
using ::attnd::testing::RandomGradientCase;
using ::attnd::testing::SameBits;
using ::testing::Each;
using ::testing::IsEmpty;

constexpr uint64_t kSeed = 20261122;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool SameGradients(const GradientCase& a, const GradientCase& b) {
  return SameBits(a.grad_query, b.grad_query) &&
         SameBits(a.grad_key, b.grad_key) &&
         SameBits(a.grad_value, b.grad_value);
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
    ASSERT_TRUE(estimate.ok());
    EXPECT_EQ(stats->workspace_bytes, estimate->workspace_bytes);
    EXPECT_EQ(stats->flops, estimate->flops);
    // All its products are of f32.
    const Isa isa = engine.machine().isa;
    EXPECT_EQ(stats->isa, F32Isa(isa));
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

TEST_P(BackwardTest, AgreesAtTheEdgesOfHeadDims) {
  for (const int64_t dim : {1, 2, 15, 16, 17, 64, 127, 128, 129, 512, 1024}) {
    GradientCase c(
        {.num_kv_heads = 2,
         .group = 2,
         .q_len = 19,
         .kv_len = 70,
         .head_dim = dim,
         .v_head_dim = 1025 - dim,
         .options = {.causal = Causal::kBottomRight, .return_lse = true}},
        kSeed);
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

// What no row sees has a gradient of 0, whatever it holds; a row that sees
// nothing has one of 0, whatever the loss says of it.
TEST_P(BackwardTest, PoisonInWhatIsHiddenChangesNoBit) {
  std::mt19937_64 rng(kSeed);
  int poisoned = 0;
  for (int i = 0; i < Affordable(200); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    GradientCase c(RandomGradientCase(rng, 100), rng());
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
      const BatchEntry entry = problem.mask().Entry(b);
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
                  .options = {.return_lse = true}},
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
                         ::testing::ValuesIn(SupportedIsas()),
                         [](const auto& isa) {
                           return std::string(IsaName(isa.param));
                         });

}  // namespace
}  // namespace attnd
