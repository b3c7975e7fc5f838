#include "core/kernel_plan.h"

#include <algorithm>
#include <limits>

#include "core/checked_math.h"
#include "core/kernels/geometry.h"
#include "core/workspace.h"

namespace attnd {
namespace {

constexpr int64_t kFloatBytes = 4;
constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max();

// A tile wants its scores and one pass of K^T or V in the second-level cache,
// with room for the other's lines: what is over half of it does not pay.
int64_t ChooseTileKv(const AttentionParams& params, const Geometry& geometry,
                     int64_t l2_bytes) {
  constexpr int64_t kMaxTileKv = 512;
  const int64_t panel = geometry.panel_keys();
  int64_t keys = params.block_size;
  if (keys == 0) {
    const int64_t row_bytes =
        kFloatBytes * (params.head_dim + params.v_head_dim);
    keys = std::clamp<int64_t>(l2_bytes / 4 / row_bytes, 64, 256);
  }
  keys = std::min(keys, std::max<int64_t>(params.kv_len, 1));
  return std::clamp(RoundUp(std::min(keys, kMaxTileKv), panel), panel,
                    kMaxTileKv);
}

}  // namespace

int64_t KernelPlan::Slots(int64_t threads) const {
  return std::max<int64_t>(1, std::min(threads, task_count));
}

int64_t KernelPlan::WorkspaceBytes(int64_t threads) const {
  const auto slot_total = CheckedProduct({Slots(threads), slot_bytes});
  const auto total =
      slot_total ? CheckedSum({packed_keys_bytes, *slot_total}) : std::nullopt;
  return total.value_or(kMaxBytes);
}

KernelPlan MakeKernelPlan(const AttentionParams& params,
                          const MachineInfo& machine) {
  const Geometry geometry = GeometryOf(machine.isa);
  KernelPlan plan;
  plan.isa = machine.isa;
  plan.panel_keys = geometry.panel_keys();
  plan.tile_kv = ChooseTileKv(params, geometry, machine.l2_bytes);
  const int64_t group_rows = params.HeadsPerGroup() * params.q_len;
  constexpr int64_t kTileRows = 96;
  plan.tile_q = std::clamp<int64_t>(group_rows, 1, kTileRows);
  plan.q_tiles = CeilDiv(group_rows, plan.tile_q);
  const int64_t kv_heads = params.batch * params.num_kv_heads;
  plan.task_count = kv_heads * plan.q_tiles;
  if (plan.task_count > 0) {
    const int64_t panels = CeilDiv(params.kv_len, plan.panel_keys);
    plan.pack_tasks =
        kv_heads * CeilDiv(panels, KernelPlan::kPanelsPerPackTask);
    // Whole panels may be far more than the keys, of which AttentionProblem
    // bounds the product; one line more keeps the slots behind them aligned.
    const auto bytes = CheckedProduct(
        {kFloatBytes, kv_heads, panels * plan.panel_keys, params.head_dim});
    plan.packed_keys_bytes = bytes && *bytes < kMaxBytes - Workspace::kAlignment
                                 ? RoundUp(*bytes, Workspace::kAlignment)
                                 : kMaxBytes;
  }
  plan.slot_bytes =
      kFloatBytes *
      SlotLayout::Of(geometry, plan.tile_q, plan.tile_kv, params.v_head_dim)
          .total;
  return plan;
}

}  // namespace attnd
