#include "core/kernels/flash_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/reference_attention.h"
#include "core/workspace.h"
#include "tests/support/attention_case.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::AttentionCase;
using ::attnd::testing::CaseShape;
using ::attnd::testing::RandomShape;
using ::testing::Each;
using ::testing::IsEmpty;

constexpr uint64_t kSeed = 20261122;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Yields before every key tile but the first, or never.
class FakeControl : public SliceControl {
 public:
  explicit FakeControl(bool yield) : yield_(yield) {}
  bool ShouldStop() override { return false; }
  bool ShouldYield() override { return yield_; }

 private:
  bool yield_;
};

// Every kernel of this machine in turn, called directly.
class FlashAttentionTest : public ::testing::TestWithParam<Isa> {
 protected:
  void Compute(AttentionCase& c, bool yield = false) const {
    c.ClearOutputs();
    const AttentionProblem& problem = c.problem();
    MachineInfo machine = MachineInfo::Detect();
    machine.isa = GetParam();
    const KernelPlan plan = MakeKernelPlan(problem, machine);
    const Workspace workspace =
        Workspace::Reserve(plan.WorkspaceBytes(1)).value();
    const FlashJob job(problem, plan, c.buffers(), workspace.data());
    const FlashKernel& kernel = GetFlashKernel(plan.isa);
    kernel.init_slot(job.Slot(0));
    FakeControl control(yield);
    for (int64_t t = 0; t < plan.pack_tasks; ++t) kernel.pack(job, t);
    for (int64_t t = 0; t < plan.tile_tasks; ++t) {
      while (kernel.run_tile(job, t, job.Slot(0), control) ==
             TileJob::Slice::kYield) {
      }
    }
    for (int64_t t = 0; t < plan.merge_tasks; ++t) kernel.merge(job, t);
  }
};

TEST_P(FlashAttentionTest, AgreesWithTheOracleOnRandomShapes) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(300); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomShape(rng, 300), rng());
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(FlashAttentionTest, AgreesAtEveryHeadDimUpTo80AndAtTheLargest) {
  std::vector<int64_t> dims;
  for (int64_t d = 1; d <= 80; ++d) dims.push_back(d);
  dims.insert(dims.end(), {127, 128, 129, 256, 511, 512, 513, 1024});
  for (const int64_t d : dims) {
    AttentionCase c({.q_len = 13,
                     .kv_len = 70,
                     .head_dim = d,
                     .v_head_dim = d,
                     .options = {.return_lse = true}},
                    kSeed);
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(FlashAttentionTest, SurvivesScoresOfTenThousand) {
  AttentionCase c({.q_len = 50,
                   .kv_len = 131,
                   .head_dim = 64,
                   .v_head_dim = 64,
                   .options = {.scale = 1.0f, .return_lse = true}},
                  kSeed, 1250);
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
}

TEST_P(FlashAttentionTest, YieldingChangesNoBit) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(20); ++i) {
    CaseShape shape = RandomShape(rng, 1100);
    shape.kv_len += 600;
    AttentionCase c(shape, rng());
    Compute(c);
    const std::vector<float> whole = c.output;
    Compute(c, /*yield=*/true);
    ASSERT_EQ(0, std::memcmp(whole.data(), c.output.data(),
                             whole.size() * sizeof(float)))
        << shape.ToString();
  }
}

// Keys 0..i are seen by row i: a NaN in key and value j must reach the rows
// from j on, whole, and no other.
TEST_P(FlashAttentionTest, HiddenNanTouchesNothing) {
  for (const int64_t group : {1, 3}) {
    CaseShape shape = {.group = group,
                       .q_len = 150,
                       .kv_len = 150,
                       .head_dim = 20,
                       .v_head_dim = 20,
                       .options = {.causal = Causal::kTopLeft}};
    AttentionCase clean(shape, kSeed);
    Compute(clean);
    for (const int64_t j : {0, 1, 5, 63, 64, 100, 149}) {
      AttentionCase c(shape, kSeed);
      c.key[static_cast<size_t>(j * 20 + 3)] = kNan;
      for (size_t d = 0; d < 20; ++d) {
        c.value[static_cast<size_t>(j) * 20 + d] =
            d % 2 == 0 ? kNan : kInfinity;
      }
      Compute(c);
      for (int64_t row = 0; row < group * 150; ++row) {
        for (int64_t d = 0; d < 20; ++d) {
          const auto at = static_cast<size_t>(row * 20 + d);
          if (row % 150 < j) {
            ASSERT_EQ(c.output[at], clean.output[at]) << row << " " << j;
          } else {
            ASSERT_TRUE(std::isnan(c.output[at])) << row << " " << j;
          }
        }
      }
    }
  }
}

TEST_P(FlashAttentionTest, SeenNanFollowsTheFormula) {
  const CaseShape shape = {
      .q_len = 9, .kv_len = 80, .head_dim = 8, .v_head_dim = 40};
  AttentionCase clean(shape, kSeed);
  Compute(clean);
  // A query row: that row alone.
  AttentionCase c(shape, kSeed);
  c.query[3 * 8 + 2] = kNan;
  Compute(c);
  for (size_t at = 0; at < c.output.size(); ++at) {
    if (at / 40 == 3) {
      EXPECT_TRUE(std::isnan(c.output[at]));
    } else {
      EXPECT_EQ(c.output[at], clean.output[at]);
    }
  }
  // A value: its column alone.
  AttentionCase v(shape, kSeed);
  v.value[70 * 40 + 39] = kNan;
  Compute(v);
  for (size_t at = 0; at < v.output.size(); ++at) {
    if (at % 40 == 39) {
      EXPECT_TRUE(std::isnan(v.output[at]));
    } else {
      EXPECT_EQ(v.output[at], clean.output[at]);
    }
  }
  // A key: every row that sees it.
  AttentionCase k(shape, kSeed);
  k.key[79 * 8] = kNan;
  Compute(k);
  for (const float x : k.output) EXPECT_TRUE(std::isnan(x));
}

TEST_P(FlashAttentionTest, RowsWithNothingToSeeAreZeroWithLseMinusInfinity) {
  // Bottom-right with more queries than keys: the first rows see nothing.
  AttentionCase c(
      {.q_len = 20,
       .kv_len = 5,
       .head_dim = 4,
       .v_head_dim = 4,
       .options = {.causal = Causal::kBottomRight, .return_lse = true}},
      kSeed);
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
  EXPECT_EQ(c.output[0], 0.0f);
  EXPECT_EQ(c.lse[14], -kInfinity);
  EXPECT_TRUE(std::isfinite(c.lse[15]));

  AttentionCase none({.q_len = 7,
                      .kv_len = 0,
                      .head_dim = 4,
                      .v_head_dim = 4,
                      .options = {.return_lse = true}},
                     kSeed);
  Compute(none);
  EXPECT_THAT(none.output, Each(0.0f));
  EXPECT_THAT(none.lse, Each(-kInfinity));
}

TEST_P(FlashAttentionTest, AllScoresMinusInfinityGiveZero) {
  AttentionCase c({.q_len = 3,
                   .kv_len = 33,
                   .head_dim = 1,
                   .v_head_dim = 5,
                   .options = {.scale = 1.0f, .return_lse = true}},
                  kSeed);
  for (float& x : c.query) x = 1;
  for (float& x : c.key) x = -kInfinity;
  Compute(c);
  EXPECT_THAT(c.output, Each(0.0f));
  EXPECT_THAT(c.lse, Each(-kInfinity));
}

TEST_P(FlashAttentionTest, AScoreOfPlusInfinityGivesNanAndLseInfinity) {
  for (const int64_t key : {0, 200, 699}) {
    AttentionCase c({.q_len = 3,
                     .kv_len = 700,
                     .head_dim = 1,
                     .v_head_dim = 5,
                     .options = {.return_lse = true}},
                    kSeed);
    for (float& x : c.query) x = 1;
    c.key[static_cast<size_t>(key)] = kInfinity;
    Compute(c);
    for (const float x : c.output) EXPECT_TRUE(std::isnan(x));
    EXPECT_THAT(c.lse, Each(kInfinity));
    c.key[300] = kNan;
    Compute(c);
    for (const float x : c.lse) EXPECT_TRUE(std::isnan(x));
  }
}

TEST_P(FlashAttentionTest, TheLargestScaleLeavesAScoreOfZeroAlone) {
  AttentionCase c({.q_len = 2,
                   .kv_len = 9,
                   .head_dim = 3,
                   .v_head_dim = 3,
                   .options = {.scale = std::numeric_limits<float>::max(),
                               .return_lse = true}},
                  kSeed);
  for (float& x : c.query) x = 0;
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
  // Small scores, by a scale that must stay exact.
  c.query = {1e-38f, 0, 0, 0, 2e-38f, 0};
  for (size_t j = 0; j < 9; ++j) {
    for (size_t d = 0; d < 3; ++d) {
      c.key[j * 3 + d] = static_cast<float>(j % 3);
    }
  }
  Compute(c);
  EXPECT_THAT(c.Compare(), IsEmpty());
}

TEST_P(FlashAttentionTest, ScoresOfAnySizeKeepTheWeightsOfTheLargest) {
  for (const float score : {1e8f, 1e10f, 1e12f, 1e16f, 1e30f, -1e30f}) {
    AttentionCase c({.q_len = 1,
                     .kv_len = 600,
                     .head_dim = 1,
                     .v_head_dim = 2,
                     .options = {.scale = 1.0f, .return_lse = true}},
                    kSeed);
    c.query[0] = 1;
    for (float& x : c.key) x = score;
    c.key[599] = score / 2;  // far below, or far above, all others
    Compute(c);
    // The bound at such magnitudes is loose; the weights are 0 or equal.
    double expected[2];
    double lse = 0;
    ReferenceAttentionRow(c.problem(), c.buffers(), 0, 0, 0, expected, &lse);
    EXPECT_NEAR(c.output[0], expected[0], 1e-5) << score;
    EXPECT_NEAR(c.output[1], expected[1], 1e-5) << score;
    EXPECT_FLOAT_EQ(c.lse[0], static_cast<float>(lse)) << score;
  }
}

TEST_P(FlashAttentionTest, GroupedHeadsEqualRepeatedHeads) {
  CaseShape grouped = {.num_kv_heads = 2,
                       .group = 3,
                       .q_len = 37,
                       .kv_len = 91,
                       .head_dim = 24,
                       .v_head_dim = 24,
                       .options = {.causal = Causal::kBottomRight}};
  AttentionCase g(grouped, kSeed);
  Compute(g);
  CaseShape repeated = grouped;
  repeated.num_kv_heads = 6;
  repeated.group = 1;
  AttentionCase r(repeated, kSeed);
  r.query = g.query;
  const size_t head = 91 * 24;
  for (size_t h = 0; h < 6; ++h) {
    std::copy_n(g.key.begin() + static_cast<int64_t>(h / 3 * head), head,
                r.key.begin() + static_cast<int64_t>(h * head));
    std::copy_n(g.value.begin() + static_cast<int64_t>(h / 3 * head), head,
                r.value.begin() + static_cast<int64_t>(h * head));
  }
  Compute(r);
  ASSERT_EQ(g.output.size(), r.output.size());
  for (size_t i = 0; i < g.output.size(); ++i) {
    ASSERT_NEAR(g.output[i], r.output[i], 2e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, FlashAttentionTest,
                         ::testing::ValuesIn(SupportedIsas()),
                         [](const auto& isa) {
                           return std::string(IsaName(isa.param));
                         });

}  // namespace
}  // namespace attnd
