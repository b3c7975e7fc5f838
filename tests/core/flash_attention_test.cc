#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <utility>
#include <vector>

#include "core/kernels/forward_job.h"
#include "core/workspace.h"
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
using ::attnd::testing::SplitShapes;
using ::attnd::testing::TypedArray;
using ::testing::IsEmpty;

// Makes the kernel yield before every key tile except the first one, or never.
class FakeControl : public SliceControl {
 public:
  explicit FakeControl(bool yield) : yield_(yield) {}
  bool ShouldStop() override { return false; }
  bool ShouldYield() override { return yield_; }

 private:
  bool yield_;
};

// Calls every kernel of this machine directly.
class FlashAttentionTest : public ::testing::TestWithParam<Isa> {
 protected:
  // The kernel must not change these bytes behind the workspace.
  static constexpr int64_t kCanaryBytes = 4096;
  static constexpr std::byte kCanary{0xA5};

  // Computes with `threads` workers. `rng` chooses which one runs next.
  void Compute(AttentionCase& c, bool yield, int64_t threads,
               std::mt19937_64& rng) const {
    c.ClearOutputs();
    const AttentionProblem& problem = c.problem();
    MachineInfo machine = MachineInfo::Detect();
    machine.isa = GetParam();
    const KernelPlan plan = MakeKernelPlan(problem, machine);
    const int64_t workspace_bytes = plan.WorkspaceBytes(threads);
    Workspace workspace =
        Workspace::Reserve(workspace_bytes + kCanaryBytes).value();
    std::byte* const end = workspace.data() + workspace_bytes;
    std::fill_n(end, kCanaryBytes, kCanary);
    ForwardJob job(problem, plan, c.buffers(), /*source=*/nullptr, threads,
                   std::move(workspace));
    FakeControl control(yield);
    const auto run = [&](ForwardPhase phase, int64_t task, int64_t slot) {
      return job.Run(static_cast<int64_t>(phase), task, slot, control);
    };
    constexpr int64_t kIdle = -1;
    std::vector<int64_t> task_of(static_cast<size_t>(plan.Slots(threads)),
                                 kIdle);
    int64_t next = 0;
    for (int64_t done = 0; done < plan.tile_tasks;) {
      const size_t slot = rng() % task_of.size();
      int64_t& task = task_of[slot];
      if (task == kIdle && next == plan.tile_tasks) continue;
      if (task == kIdle) {
        task = next++;
        continue;  // another worker can be faster
      }
      if (run(ForwardPhase::kTiles, task, static_cast<int64_t>(slot)) ==
          TileJob::Slice::kYield) {
        continue;
      }
      task = kIdle;
      ++done;
    }
    for (int64_t t = 0; t < plan.merge_tasks; ++t) {
      run(ForwardPhase::kMerge, t, 0);
    }
    for (int64_t t = 0; t < plan.padding_tasks; ++t) {
      run(ForwardPhase::kPadding, t, 0);
    }
    // All that the estimate has is in use, and no more.
    ASSERT_EQ(reinterpret_cast<std::byte*>(job.Slot(plan.Slots(threads))), end);
    ASSERT_EQ(std::count(end, end + kCanaryBytes, kCanary), kCanaryBytes);
  }

  void Compute(AttentionCase& c, bool yield = false) const {
    std::mt19937_64 unused;
    Compute(c, yield, 1, unused);
  }
};

TEST_P(FlashAttentionTest, AgreesWithTheOracleOnRandomShapes) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(100); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomCase(rng, 300), rng());
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(FlashAttentionTest, YieldingChangesNoBit) {
  std::mt19937_64 rng(kSeed);
  const auto expect_same = [&](AttentionCase& c) {
    Compute(c);
    const TypedArray output = c.output;
    const std::vector<float> lse = c.lse;
    Compute(c, /*yield=*/true);
    ASSERT_TRUE(c.output == output) << c.ToString();
    ASSERT_TRUE(SameBits(lse, c.lse)) << c.ToString();
  };
  for (int i = 0; i < Affordable(40); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomCase(rng, 130, 1700), rng());
    expect_same(c);
    if (HasFatalFailure()) return;
  }
  for (const CaseShape& shape : SplitShapes()) {
    for (const float size : testing::kSplitSizes) {
      AttentionCase c(shape, kSeed);
      c.Scale(size);
      expect_same(c);
      if (HasFatalFailure()) return;
    }
  }
}

// Packed heads replace earlier ones, and any worker can pack them. If there
// were too few buffers, this test would not end.
TEST_P(FlashAttentionTest, HeadsOfManyTilesShareFewPlaces) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(40); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomCase(rng, 600), rng());
    Compute(c);
    const TypedArray output = c.output;
    const std::vector<float> lse = c.lse;
    for (const int64_t threads : {2, 3, 7}) {
      Compute(c, /*yield=*/true, threads, rng);
      ASSERT_TRUE(c.output == output) << c.ToString();
      ASSERT_TRUE(SameBits(lse, c.lse)) << c.ToString();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, FlashAttentionTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

}  // namespace
}  // namespace attnd
