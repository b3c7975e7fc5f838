#include "core/kernel_plan.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "core/kernels/geometry.h"

namespace attnd {
namespace {

constexpr MachineInfo kWide = {
    .isa = Isa::kAvx512, .l1_bytes = 32 << 10, .l2_bytes = 1 << 20};

AttentionParams Params(int64_t batch, int64_t heads, int64_t group,
                       int64_t q_len, int64_t kv_len, int64_t head_dim) {
  AttentionParams params;
  params.batch = batch;
  params.num_q_heads = heads * group;
  params.num_kv_heads = heads;
  params.q_len = q_len;
  params.kv_len = kv_len;
  params.head_dim = head_dim;
  params.v_head_dim = head_dim;
  return params;
}

struct Row {
  AttentionParams params;
  int64_t tile_q;
  int64_t tile_kv;
  int64_t task_count;
};

TEST(KernelPlanTest, ChoosesTheTilesOfTheTable) {
  const std::vector<Row> table = {
      {Params(1, 1, 1, 4096, 4096, 128), 96, 256, 43},
      {Params(1, 1, 1, 4096, 4096, 64), 96, 256, 43},
      {Params(2, 8, 4, 1, 32768, 128), 4, 256, 16},
      {Params(1, 32, 1, 128, 128, 64), 96, 128, 64},
      {Params(1, 1, 1, 4096, 4096, 1024), 96, 64, 43},
      {Params(1, 1, 1, 5, 0, 64), 5, 64, 1},
      {Params(1, 1, 1, 0, 5, 64), 1, 64, 0},
      {Params(0, 1, 1, 5, 5, 64), 5, 64, 0},
  };
  for (const Row& row : table) {
    const KernelPlan plan = MakeKernelPlan(row.params, kWide);
    EXPECT_EQ(plan.tile_q, row.tile_q);
    EXPECT_EQ(plan.tile_kv, row.tile_kv);
    EXPECT_EQ(plan.task_count, row.task_count);
  }
}

TEST(KernelPlanTest, TilesDependOnNeitherBatchNorHeads) {
  const KernelPlan one = MakeKernelPlan(Params(1, 1, 2, 700, 900, 64), kWide);
  const KernelPlan many =
      MakeKernelPlan(Params(16, 32, 2, 700, 900, 64), kWide);
  EXPECT_EQ(one.tile_q, many.tile_q);
  EXPECT_EQ(one.tile_kv, many.tile_kv);
  EXPECT_EQ(one.variant, many.variant);
}

TEST(KernelPlanTest, BlockSizeIsAHintInWholePanels) {
  AttentionParams params = Params(1, 1, 1, 512, 4096, 64);
  for (const auto& [hint, keys] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 64},
           {64, 64},
           {65, 128},
           {200, 256},
           {1 << 30, 512},
           {std::numeric_limits<int64_t>::max(), 512}}) {
    params.block_size = hint;
    EXPECT_EQ(MakeKernelPlan(params, kWide).tile_kv, keys) << hint;
  }
}

TEST(KernelPlanTest, WorkspaceGrowsWithThreadsUpToTheTiles) {
  const KernelPlan plan = MakeKernelPlan(Params(1, 1, 1, 200, 64, 64), kWide);
  ASSERT_EQ(plan.task_count, 3);
  const int64_t one = plan.WorkspaceBytes(1);
  EXPECT_EQ(plan.WorkspaceBytes(2), one + plan.slot_bytes);
  EXPECT_EQ(plan.WorkspaceBytes(3), plan.WorkspaceBytes(64));
}

TEST(KernelPlanTest, BytesSaturateWherePanelsOverflow) {
  for (const int64_t batch : {int64_t{1} << 49, int64_t{1} << 50}) {
    const KernelPlan plan =
        MakeKernelPlan(Params(batch, 1, 1, 1, 1, 256), kWide);
    EXPECT_GT(plan.WorkspaceBytes(2), int64_t{1} << 62);
  }
}

TEST(KernelPlanTest, EveryTileFitsTheKernelsFixedArrays) {
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    MachineInfo machine = kWide;
    machine.isa = isa;
    for (const int64_t q_len : {1, 95, 96, 97, 5000}) {
      const KernelPlan plan =
          MakeKernelPlan(Params(1, 1, 3, q_len, 777, 100), machine);
      EXPECT_LE(plan.tile_q, kMaxTileRows);
      EXPECT_EQ(plan.tile_kv % plan.panel_keys, 0);
      EXPECT_EQ(plan.slot_bytes % 64, 0);
      EXPECT_EQ(plan.packed_keys_bytes % 64, 0);
    }
  }
}

}  // namespace
}  // namespace attnd
