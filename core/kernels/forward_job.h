// The job that computes the output and lse of one problem. Its tasks are
// functions that are compiled for the plan's instruction set. They know tiles
// and ranges of keys, but no mask kinds, threads or requests.
#ifndef ATTND_CORE_KERNELS_FORWARD_JOB_H_
#define ATTND_CORE_KERNELS_FORWARD_JOB_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/attention_problem.h"
#include "core/geometry.h"
#include "core/input_source.h"
#include "core/kernel_plan.h"
#include "core/kernels/score_inputs.h"
#include "core/kv_rows.h"
#include "core/tensor_view.h"
#include "core/tile_scheduler.h"
#include "core/workspace.h"

namespace attnd {

// The phases of a ForwardJob, in the order in which they run.
enum class ForwardPhase : int64_t {
  kLoad,  // brings a piece of the inputs from the source
  // Computes one of plan.tile_tasks. First packs those pieces of its kv head
  // that no other tile has taken on. Takes up to 96 KiB of stack.
  kTiles,
  kMerge,    // merges the splits of a tile: plan.merge_tasks
  kPadding,  // writes rows that are in no tile: plan.padding_tasks
};

// The members are shared by all tasks. They do not change while tasks run; what
// the tasks share and change are atomics in the workspace.
class ForwardJob final : public TileJob {
 public:
  // Takes the arguments of MakeForwardJob, and prepares the parts of the
  // workspace that all tasks share.
  ForwardJob(AttentionProblem problem, KernelPlan plan,
             const AttentionBuffers& buffers, InputSource* source,
             int64_t threads, Workspace workspace);

  std::vector<Phase> Phases() const override;
  Slice Run(int64_t phase, int64_t task, int64_t slot,
            SliceControl& control) override;

  // Returns the memory of slot `slot`, the working memory of one tile in
  // progress.
  float* Slot(int64_t slot) const {
    return reinterpret_cast<float*>(slots + slot * plan.slot_bytes);
  }

  // Returns batch entry `index` without its padding rows, which are in no tile.
  BatchEntry SeeingEntry(int64_t index) const {
    BatchEntry entry = problem.visibility().Entry(index);
    entry.q_len = entry.q_seeing;
    return entry;
  }

  // Writes the results of the padding rows of padding task `task`: an output of
  // 0, and as lse the sink logit of the head, or -inf.
  void WritePadding(int64_t task) const;

  // Copies the keys and values that `task` packs from `source` to the input
  // buffers. Called only if loads_with_packing.
  void Load(const PackTask& task) const;

  HeadPacking& Packing(const TileTask& task) const {
    return packing[task.entry * params.num_kv_heads + task.kv_head];
  }

  // Returns the memory of place `place`, 0 <= place < packed_heads, which can
  // hold one packed kv head. Its first word says whether the place is taken;
  // tasks access that word as an atomic.
  std::byte* PackedHead(int64_t place) const {
    return heads + place * plan.packed_head_bytes;
  }

  const AttentionProblem problem;
  const AttentionParams& params;
  const KernelPlan plan;
  const ScoreInputs scores;
  InputSource* const source;  // or null
  // Whether a worker loads keys and values from `source` right before it packs
  // them, so that they are in its cache when it does.
  const bool loads_with_packing;
  const TensorView<const std::byte> query;  // [batch, num_q_heads, q_len,
                                            //  head_dim]
  const KvSource key;
  const KvSource value;
  const TensorView<std::byte> output;  // [batch, num_q_heads, q_len,
                                       //  v_head_dim]
  const TensorView<float> lse;  // [batch, num_q_heads, q_len, 1], or null
  const int64_t threads;
  const int64_t packed_heads;
  std::byte* heads;
  HeadPacking* packing;  // [entries, num_kv_heads], or nothing
  float* partials;
  std::byte* slots;

 private:
  // The function that runs a task, compiled for one instruction set.
  using RunFn = Slice (*)(const ForwardJob& job, ForwardPhase phase,
                          int64_t task, int64_t slot, SliceControl& control);

  const Workspace workspace_;
  const RunFn run_;
};

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_FORWARD_JOB_H_
