// How a problem will be computed: which kernel, cut into which tiles. A pure
// choice, made from numbers alone, so that a table can test it.
#ifndef ATTND_CORE_KERNEL_PLAN_H_
#define ATTND_CORE_KERNEL_PLAN_H_

#include <cstdint>
#include <string_view>

#include "core/attention_params.h"
#include "core/machine.h"

namespace attnd {

// Immutable once made. Tiles depend on one batch entry's lengths, dims, types
// and options and on the machine; never on workers, batch or load, so that the
// same request gives the same bits whatever runs beside it.
struct KernelPlan {
  // K^T panels that one packing task makes.
  static constexpr int64_t kPanelsPerPackTask = 8;

  Isa isa = Isa::kScalar;
  std::string_view variant = "tiled";  // what ExecutionStats.kernel answers
  // Query rows in a tile. The heads of a GQA group that share a kv head are
  // rows of one matrix, so a tile may hold rows of several heads.
  int64_t tile_q = 0;
  int64_t tile_kv = 0;            // keys in a tile
  int64_t panel_keys = 0;         // keys in a packed K^T panel; divides tile_kv
  int64_t q_tiles = 0;            // tiles of one kv head of one batch entry
  int64_t pack_tasks = 0;         // packing tasks of the job
  int64_t task_count = 0;         // tiles of the job
  int64_t packed_keys_bytes = 0;  // K^T of the whole job
  int64_t slot_bytes = 0;         // one tile in progress

  // Tiles that may be in progress on `threads` workers; at least 1.
  int64_t Slots(int64_t threads) const;

  // Bytes that the job holds beside inputs and outputs, when at most `threads`
  // of its tiles are in progress.
  int64_t WorkspaceBytes(int64_t threads) const;
};

// `params` must come from an AttentionProblem. Byte counts saturate at the
// largest int64 instead of overflowing.
KernelPlan MakeKernelPlan(const AttentionParams& params,
                          const MachineInfo& machine);

}  // namespace attnd

#endif  // ATTND_CORE_KERNEL_PLAN_H_
