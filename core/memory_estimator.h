// Computes how many bytes a problem takes before anything is allocated for it:
// its tensors, and the workspace that the engine reserves for it.
#ifndef ATTND_CORE_MEMORY_ESTIMATOR_H_
#define ATTND_CORE_MEMORY_ESTIMATOR_H_

#include <cstdint>

#include "absl/status/status.h"
#include "core/attention_problem.h"
#include "core/backward_plan.h"
#include "core/kernel_plan.h"

namespace attnd {

// A figure that does not fit an int64 is kMaxInt64. Each figure saturates on
// its own, so the others are exact.
struct MemoryEstimate {
  int64_t input_bytes = 0;      // query, key, value, bias and mask
  int64_t output_bytes = 0;     // the output, and lse if it is returned
  int64_t workspace_bytes = 0;  // for all threads together
  int64_t flash_bytes = 0;      // the sum of the three above
  // The bytes of attention that stores all scores: input, output, and an f32
  // score for each query head, query row and key of every batch entry.
  int64_t naive_bytes = 0;
  // The floating-point operations: 2 * (head_dim + v_head_dim) for each query
  // head, query row and key that the row sees.
  int64_t flops = 0;

  // 1 - flash_bytes / naive_bytes. Negative for tiny problems, 0 for empty
  // ones.
  double ReductionRatio() const;
};

// Returns INVALID_ARGUMENT with reason INT64_RANGE. This is the error for a
// call whose bytes do not fit a signed 64-bit number.
absl::Status BytesOutOfRange();

// Computes estimates. Immutable, so threads may share it. Allocates at most a
// few numbers for each batch entry, whatever the lengths.
class MemoryEstimator {
 public:
  // Makes an estimator for an engine with `threads` workers on `machine`.
  MemoryEstimator(const MachineInfo& machine, int64_t threads)
      : machine_(machine), threads_(threads) {}

  // Return what the call Attention takes. The problem may be of any size
  // (AttentionProblem::CreateOfAnySize). Pass the plan for `machine` if there
  // is one already.
  MemoryEstimate Estimate(const AttentionProblem& problem) const;
  MemoryEstimate Estimate(const AttentionProblem& problem,
                          const KernelPlan& plan) const;

  // Return what the call AttentionBackward takes. Its inputs are those of
  // Attention, the output and lse that Attention returned, and the gradient of
  // the output. Its outputs are three gradients. naive_bytes has the scores and
  // their gradients.
  MemoryEstimate EstimateBackward(const AttentionProblem& problem) const;
  MemoryEstimate EstimateBackward(const AttentionProblem& problem,
                                  const BackwardPlan& plan) const;

 private:
  MachineInfo machine_;
  int64_t threads_;
};

}  // namespace attnd

#endif  // ATTND_CORE_MEMORY_ESTIMATOR_H_
