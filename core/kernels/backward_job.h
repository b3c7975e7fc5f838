// The job that computes the exact gradients of attention. It computes the
// weights again, tile by tile, from the lse of the forward pass, so its memory
// grows only linearly with the sequence length.
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
  // Prepares a tile of query rows: computes dot(grad_output, output) of each
  // row, packs Q and dO (the gradient of the output) if the tile's kind needs
  // that, and sets the rows' dQ to 0.
  kPrepareRows,
  // Computes the gradients of a run of consecutive key tiles, and adds the
  // run's share to dQ after the shares of all earlier keys. A run yields while
  // an earlier run has not added its share yet, so tasks must start in order.
  kKeyRuns,
  kFinishRows,  // writes dQ of a tile of query rows
};

// The members are shared by all tasks. They do not change while tasks run; what
// the tasks share and change are gradients and atomics in the workspace.
class BackwardJob final : public TileJob {
 public:
  // Takes the arguments of MakeBackwardJob, and prepares the parts of the
  // workspace that all tasks share.
  BackwardJob(AttentionProblem problem, BackwardPlan plan,
              const BackwardBuffers& buffers, InputSource* source,
              int64_t threads, Workspace workspace);

  std::vector<Phase> Phases() const override;
  Slice Run(int64_t phase, int64_t task, int64_t slot,
            SliceControl& control) override;

  // Returns the memory of slot `slot`, the working memory of one key run in
  // progress.
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
  // dQ. Each row takes whole cache lines. The tiles of entries of kind kBf16x3
  // are transposed: each of their rows is one dimension of all query rows.
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
