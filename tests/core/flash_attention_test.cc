#include "core/kernels/flash_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "core/workspace.h"
#include "tests/support/attention_case.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::AttentionCase;
using ::attnd::testing::RandomCase;
using ::attnd::testing::SameBits;
using ::attnd::testing::TypedArray;
using ::testing::IsEmpty;

constexpr uint64_t kSeed = 20261122;

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
  for (int i = 0; i < Affordable(100); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomCase(rng, 300), rng());
    Compute(c);
    ASSERT_THAT(c.Compare(), IsEmpty());
  }
}

TEST_P(FlashAttentionTest, YieldingChangesNoBit) {
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(40); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomCase(rng, 130, 1700), rng());
    Compute(c);
    const TypedArray output = c.output;
    const std::vector<float> lse = c.lse;
    Compute(c, /*yield=*/true);
    ASSERT_TRUE(c.output == output) << c.ToString();
    ASSERT_TRUE(SameBits(lse, c.lse)) << c.ToString();
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, FlashAttentionTest,
                         ::testing::ValuesIn(SupportedIsas()),
                         [](const auto& isa) {
                           return std::string(IsaName(isa.param));
                         });

}  // namespace
}  // namespace attnd
