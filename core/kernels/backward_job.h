// The job that computes the exact gradients of attention. It computes attention
// again, tile by tile, from output and lse, and takes O(N) memory.
#ifndef ATTND_CORE_KERNELS_BACKWARD_JOB_H_
#define ATTND_CORE_KERNELS_BACKWARD_JOB_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/attention_problem.h"
#include "core/backward_plan.h"
#include "core/input_source.h"
#include "core/kernels/score_inputs.h"
#include "core/kv_rows.h"
#include "core/tensor_view.h"
#include "core/tile_scheduler.h"
#include "core/workspace.h"

namespace attnd {

// The phases of a BackwardJob, in the order in which they run. Tasks of one
// phase are independent, except for those of kKeyRuns.
enum class BackwardPhase : int64_t {
  kLoad,      // brings a piece of the inputs from the source
  kPackKeys,  // packs K and V of a tile of keys
  // Prepares a tile of rows: computes their deltas, packs Q and dO if the
  // tile's kind needs that, and sets their gradient to 0.
  kPrepareRows,
  // Computes the gradients of a run of key tiles, and adds the run's share to
  // the rows' gradients after those of earlier keys. A run yields while an
  // earlier run has not added its share yet, so tasks must start in order.
  kKeyRuns,
  kFinishRows,  // writes the query's gradient of a tile of rows
};

// The members are what all tasks share. They do not change while tasks run,
// except for the gradients and atomics in the workspace.
class BackwardJob final : public TileJob {
 public:
  // Takes the arguments of MakeBackwardJob. Prepares the memory that tasks
  // share in the workspace.
  BackwardJob(AttentionProblem problem, BackwardPlan plan,
              const BackwardBuffers& buffers, InputSource* source,
              int64_t threads, Workspace workspace);

  std::vector<Phase> Phases() const override;
  Slice Run(int64_t phase, int64_t task, int64_t slot,
            SliceControl& control) override;

  // Returns the memory of slot `slot`, which one run in progress uses.
  float* Slot(int64_t slot) const {
    return reinterpret_cast<float*>(slot_memory + slot * plan.slot_bytes());
  }

  const AttentionProblem problem;
  const AttentionParams& params;
  const BackwardPlan plan;
  const ScoreInputs scores;
  InputSource* const source;  // or null
  const TensorView<const float> query;
  const KvSource key, value;
  const TensorView<const float> output, grad_output;
  const TensorView<const float> lse;
  const TensorView<float> grad_query, grad_key, grad_value;
  const int64_t threads;
  float* packed_keys;  // tiles of PackedKeys or PackedKeysBf16x3
  float* packed_rows;  // tiles of PackedRowsBf16x3
  // The query's gradient, each row in whole cache lines. Tiles of kind kBf16x3
  // are transposed: their rows are dimensions, in whole cache lines.
  float* row_grads;
  float* deltas;   // dot(grad_output, output) of each row
  int32_t* turns;  // how many tiles of keys have added to a tile of rows
  std::byte* slot_memory;

 private:
  // The function that runs a task, compiled for one instruction set.
  using RunFn = Slice (*)(const BackwardJob& job, BackwardPhase phase,
                          int64_t task, int64_t slot, SliceControl& control);

  const Workspace workspace_;
  const RunFn run_;
};

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_BACKWARD_JOB_H_
