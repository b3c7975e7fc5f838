// Stubs to link with.
#include "absl/status/status.h"
#include "core/attention_engine.h"
#include "core/reference_attention.h"

namespace attnd {

absl::StatusOr<MemoryEstimate> MemoryEstimator::EstimateBackward(
    const AttentionProblem& problem) const {
  absl::StatusOr<MemoryEstimate> estimate = Estimate(problem);
  if (!estimate.ok()) return estimate;
  estimate->input_bytes +=
      2 * problem.output_bytes() + problem.lse_bytes();
  estimate->output_bytes =
      problem.query_bytes() + problem.key_bytes() + problem.value_bytes();
  estimate->flash_bytes = estimate->input_bytes + estimate->output_bytes +
                          estimate->workspace_bytes;
  return estimate;
}

void AttentionEngine::SubmitBackward(const AttentionProblem&,
                                     const BackwardBuffers&,
                                     const StopSignal*, Done done) {
  done(absl::InternalError("a stub"), {});
}

absl::StatusOr<RunStats> AttentionEngine::RunBackward(const AttentionProblem&,
                                                      const BackwardBuffers&,
                                                      const StopSignal*) {
  return absl::InternalError("a stub");
}

void ReferenceBackward(const AttentionProblem&, const BackwardBuffers&,
                       double*, double*, double*) {}

}  // namespace attnd
