// The flash-attention kernel behind a scalar interface: one table of functions
// an instruction set, chosen once a job. The only way into vector code; knows
// tiles and ranges, never mask kinds, threads or requests.
#ifndef ATTND_CORE_KERNELS_FLASH_ATTENTION_H_
#define ATTND_CORE_KERNELS_FLASH_ATTENTION_H_

#include <cstdint>

#include "core/attention_problem.h"
#include "core/kernel_plan.h"
#include "core/machine.h"
#include "core/tensor_view.h"
#include "core/tile_scheduler.h"

namespace attnd {

// All that the tasks of one job share. Borrowed; must outlive the tasks.
struct FlashJob {
  const AttentionParams* params = nullptr;
  const Mask* mask = nullptr;
  const KernelPlan* plan = nullptr;
  TensorView<const float> query;  // [batch, num_q_heads, q_len, head_dim]
  TensorView<const float> key;    // [batch, num_kv_heads, kv_len, head_dim]
  TensorView<const float> value;  // [batch, num_kv_heads, kv_len, v_head_dim]
  TensorView<float> output;       // [batch, num_q_heads, q_len, v_head_dim]
  TensorView<float> lse;          // [batch, num_q_heads, q_len, 1], or null
  float* packed_keys = nullptr;   // plan->packed_keys_bytes, 64-byte-aligned
};

struct FlashKernel {
  // Packs the keys of packing task `task` into K^T panels. Tasks are
  // independent; all of them come before any tile.
  void (*pack_keys)(const FlashJob& job, int64_t task);

  // Makes a slot of plan->slot_bytes, 64-byte-aligned, ready for its first
  // tile.
  void (*init_slot)(float* slot);

  // Computes tile `task` to its end, or until `control` wants it to yield, in
  // which case a call with the same task and slot goes on where it stopped.
  // Neither allocates nor fails; takes about 16 KiB of stack.
  TileJob::Slice (*run_tile)(const FlashJob& job, int64_t task, float* slot,
                             SliceControl& control);
};

// The kernel of `isa`, which must be one of SupportedIsas().
const FlashKernel& GetFlashKernel(Isa isa);

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_FLASH_ATTENTION_H_
