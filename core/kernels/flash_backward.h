// The backward kernel behind a scalar interface: the exact gradients of
// attention, recomputed tile by tile from its output and lse in O(N) memory.
#ifndef ATTND_CORE_KERNELS_FLASH_BACKWARD_H_
#define ATTND_CORE_KERNELS_FLASH_BACKWARD_H_

#include <cstddef>
#include <cstdint>

#include "core/attention_problem.h"
#include "core/backward_plan.h"
#include "core/kernels/score_inputs.h"
#include "core/machine.h"
#include "core/tensor_view.h"
#include "core/tile_scheduler.h"

namespace attnd {

// All that the tasks of one job share. Borrowed; must outlive the tasks.
struct BackwardJob {
  // `workspace` has plan.WorkspaceBytes(threads) bytes, 64-byte-aligned; its
  // turns and the headers of `slots` slots are made ready here.
  BackwardJob(const AttentionProblem& problem, const BackwardPlan& plan,
              const BackwardBuffers& buffers, int64_t slots,
              std::byte* workspace);

  // The memory of tile number `slot` in progress.
  float* Slot(int64_t slot) const {
    return reinterpret_cast<float*>(slot_memory + slot * plan.slot_bytes());
  }

  const AttentionProblem& problem;
  const AttentionParams& params;
  const BackwardPlan& plan;
  const ScoreInputs scores;
  TensorView<const float> query, key, value, output, grad_output;
  TensorView<const float> lse;
  TensorView<float> grad_query, grad_key, grad_value;
  float* packed_keys;  // tiles of PackedKeys or PackedKeyParts
  float* packed_rows;  // tiles of PackedRowParts
  // The query's gradient, a row in whole cache lines; by parts a tile the other
  // way round, dimensions in whole cache lines as rows.
  float* row_grads;
  float* deltas;   // dot(grad_output, output) of each row
  int32_t* turns;  // how many tiles of keys a tile of rows has taken in
  std::byte* slot_memory;
};

// Tasks of one function are independent but for `run_tile`; each function's
// come after all of those above it.
struct BackwardKernel {
  // Of a tile of keys: packs K and V.
  void (*pack)(const BackwardJob& job, int64_t task);
  // Of a tile of rows: their deltas, and where products are of parts, Q and dO;
  // clears their gradient.
  void (*prepare_rows)(const BackwardJob& job, int64_t task, float* slot);
  // Of a run of tiles of keys: their gradients, and their share of the rows'
  // gradients, which join those of earlier keys in order. Where an earlier run
  // is not so far yet, this one yields; so tasks must start in order.
  TileJob::Slice (*run_tile)(const BackwardJob& job, int64_t task, float* slot,
                             SliceControl& control);
  // Of a tile of rows: writes the query's gradient.
  void (*finish_rows)(const BackwardJob& job, int64_t task);
};

// The kernel of `isa`, which must be one of SupportedIsas().
const BackwardKernel& GetBackwardKernel(Isa isa);

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_FLASH_BACKWARD_H_
