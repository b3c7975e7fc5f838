// The flash-attention kernel behind a scalar interface: one table of functions
// an instruction set, chosen once a job. The only way into vector code; knows
// tiles and ranges, never mask kinds, threads or requests.
#ifndef ATTND_CORE_KERNELS_FLASH_ATTENTION_H_
#define ATTND_CORE_KERNELS_FLASH_ATTENTION_H_

#include <cstddef>
#include <cstdint>

#include "core/attention_problem.h"
#include "core/input_source.h"
#include "core/kernel_plan.h"
#include "core/kernels/geometry.h"
#include "core/kernels/score_inputs.h"
#include "core/machine.h"
#include "core/tensor_view.h"
#include "core/tile_scheduler.h"

namespace attnd {

// All that the tasks of one job share. Borrowed; must outlive the tasks.
struct FlashJob {
  // `workspace` has plan.WorkspaceBytes(threads) bytes, 64-byte-aligned; what
  // is shared in it is made ready here. `source`, where there is one, has the
  // keys and values that are packed, dense rows of kBhsd.
  FlashJob(const AttentionProblem& problem, const KernelPlan& plan,
           const AttentionBuffers& buffers, int64_t threads,
           std::byte* workspace, InputSource* source = nullptr);

  // The memory of tile number `slot` in progress.
  float* Slot(int64_t slot) const {
    return reinterpret_cast<float*>(slots + slot * plan.slot_bytes);
  }

  // Batch entry `index` without its rows of padding, which are in no tile.
  BatchEntry SeeingEntry(int64_t index) const {
    BatchEntry entry = problem.mask().Entry(index);
    entry.q_len = entry.q_seeing;
    return entry;
  }

  // Writes output and lse of the rows of a padding task.
  void WritePadding(int64_t task) const;

  // Brings what a packing task reads from the source to the inputs.
  void Load(const PackTask& task) const;

  HeadPacking& Packing(const TileTask& task) const {
    return packing[task.entry * params.num_kv_heads + task.kv_head];
  }

  // Place `place` for a packed kv head, below packed_heads. Its first line says
  // whether it is taken: an atomic while tasks run.
  std::byte* PackedHead(int64_t place) const {
    return heads + place * plan.packed_head_bytes;
  }

  InputSource* const source;
  const AttentionProblem& problem;
  const AttentionParams& params;
  const KernelPlan& plan;
  const ScoreInputs scores;
  TensorView<const std::byte> query;  // [batch, num_q_heads, q_len, head_dim]
  TensorView<const std::byte> key;    // [batch, num_kv_heads, kv_len, head_dim]
  TensorView<const std::byte> value;  // [batch, num_kv_heads, kv_len,
                                      //  v_head_dim]
  TensorView<std::byte> output;       // [batch, num_q_heads, q_len, v_head_dim]
  TensorView<float> lse;              // [batch, num_q_heads, q_len, 1], or null
  int64_t packed_heads;
  std::byte* heads;
  HeadPacking* packing;  // [entries, num_kv_heads], or nothing
  float* partials;
  std::byte* slots;
};

struct FlashKernel {
  // Makes a slot ready for its first tile.
  void (*init_slot)(float* slot);

  // Computes tile task `task`, after the packing of its kv head as far as no
  // other tile does that, to its end, or until `control` wants it to yield,
  // in which case a call with the same task and slot goes on where it stopped.
  // Neither allocates nor fails; takes up to 96 KiB of stack.
  TileJob::Slice (*run_tile)(const FlashJob& job, int64_t task, float* slot,
                             SliceControl& control);

  // Joins the splits of a tile, once all of them are done.
  void (*merge)(const FlashJob& job, int64_t task);
};

// The kernel of `isa`, which must be one of SupportedIsas().
const FlashKernel& GetFlashKernel(Isa isa);

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_FLASH_ATTENTION_H_
