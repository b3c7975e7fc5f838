#include "core/memory_estimator.h"

#include "absl/status/status.h"
#include "base/checked_math.h"
#include "base/field_error.h"
#include "core/naive_attention.h"

namespace attnd {
namespace {

// Adds the totals to an estimate that has its parts. `score_bytes` is what
// naive attention would hold in addition to input and output. `dims` is the
// number of multiply-adds for a query row and a key that it sees.
MemoryEstimate WithTotals(const AttentionProblem& problem,
                          MemoryEstimate estimate, int64_t score_bytes,
                          int64_t dims) {
  estimate.flash_bytes = SaturatingSum(
      {estimate.input_bytes, estimate.output_bytes, estimate.workspace_bytes});
  estimate.naive_bytes =
      SaturatingSum({estimate.input_bytes, estimate.output_bytes, score_bytes});
  estimate.flops = SaturatingProduct({2, dims, problem.params().num_q_heads,
                                      problem.visibility().VisiblePairs()});
  return estimate;
}

}  // namespace

absl::Status BytesOutOfRange() {
  return WithReason(
      absl::InvalidArgumentError(
          "the problem's bytes do not fit a signed 64-bit number"),
      kInt64RangeReason);
}

double MemoryEstimate::ReductionRatio() const {
  if (naive_bytes == 0) return 0;
  return 1 -
         static_cast<double>(flash_bytes) / static_cast<double>(naive_bytes);
}

MemoryEstimate MemoryEstimator::Estimate(
    const AttentionProblem& problem) const {
  return Estimate(problem, MakeCostPlan(problem, machine_));
}

MemoryEstimate MemoryEstimator::Estimate(const AttentionProblem& problem,
                                         const KernelPlan& plan) const {
  const AttentionParams& params = problem.params();
  MemoryEstimate estimate;
  estimate.input_bytes = SaturatingSum(
      {problem.query_bytes(), problem.key_bytes(), problem.value_bytes(),
       problem.bias_bytes(), problem.mask_bytes()});
  estimate.output_bytes = SaturatingSum(
      {problem.output_bytes(), params.return_lse ? problem.lse_bytes() : 0});
  estimate.workspace_bytes = plan.WorkspaceBytes(threads_);
  return WithTotals(problem, estimate, NaiveScoreBytes(problem),
                    params.head_dim + params.v_head_dim);
}

MemoryEstimate MemoryEstimator::EstimateBackward(
    const AttentionProblem& problem) const {
  return EstimateBackward(problem, BackwardPlan(problem, machine_));
}

MemoryEstimate MemoryEstimator::EstimateBackward(
    const AttentionProblem& problem, const BackwardPlan& plan) const {
  const AttentionParams& params = problem.params();
  MemoryEstimate estimate;
  estimate.output_bytes = SaturatingSum(
      {problem.query_bytes(), problem.key_bytes(), problem.value_bytes()});
  estimate.input_bytes = SaturatingSum(
      {estimate.output_bytes, problem.bias_bytes(), problem.mask_bytes(),
       problem.output_bytes(), problem.output_bytes(), problem.lse_bytes()});
  estimate.workspace_bytes = plan.WorkspaceBytes(threads_);
  return WithTotals(problem, estimate,
                    SaturatingProduct({2, NaiveScoreBytes(problem)}),
                    3 * params.head_dim + 2 * params.v_head_dim);
}

}  // namespace attnd
