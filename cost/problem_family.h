// Families of problems that differ in one size, which a search changes.
#ifndef ATTND_COST_PROBLEM_FAMILY_H_
#define ATTND_COST_PROBLEM_FAMILY_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/types.h"
#include "cost/cost_query.h"

namespace attnd {

class ProblemFamily {
 public:
  // Returns the family of `query` whose size is what `goal` searches: seq_len,
  // batch or concurrency. `goal` must not be kEstimate. Sizes that are 0 take
  // their defaults, and the value of the size that is searched has no effect.
  // MemoryEstimateRequest in attnd/v1/attention.proto says which sizes and
  // options follow it. INVALID_ARGUMENT names the size or the option that is
  // wrong, or that contradicts the goal.
  static absl::StatusOr<ProblemFamily> Of(const CostQuery& query,
                                          EstimateGoal goal);

  // Returns the family of `query` whose sequences grow in proportion. Its size
  // is the longer one of q_len and kv_len, and must not be less than that of
  // `query`. `query` must have all defaults, and a cost.
  static ProblemFamily WithLongerSequences(const CostQuery& query);

  // Returns the cost of the member of this size, which must be at least 1. Time
  // and memory depend on the lists in the options, but not on the size.
  absl::StatusOr<QueryCost> CostAt(int64_t size);

  // Returns the sizes from which on a member may take less memory than the one
  // before it, in rising order. All are above 1. Between two of them, larger
  // members never take less. Only for a family that Of has returned.
  const std::vector<int64_t>& sizes_that_may_take_less() const {
    return sizes_that_may_take_less_;
  }

 private:
  ProblemFamily(const CostQuery& query, EstimateGoal goal)
      : goal_(goal), query_(query), options_(query.options) {}

  absl::Status CheckGoal() const;
  absl::Status CheckAxes() const;
  void FindSizesThatMayTakeLess(const AttentionProblem& problem);
  void SetSize(int64_t size);
  int64_t LengthAt(int64_t size, int64_t length) const;

  EstimateGoal goal_;  // kEstimate if sequences grow in proportion
  // Which axes of bias and mask follow, counted from the right, if they are not
  // 1.
  bool kv_axis_follows_ = false;
  bool q_axis_follows_ = false;
  bool batch_axis_follows_ = false;
  int64_t given_q_len_ = 0;
  int64_t given_kv_len_ = 0;
  CostQuery query_;           // the member whose cost was computed last
  AttentionOptions options_;  // those that the caller gave
  std::vector<int64_t> sizes_that_may_take_less_;
};

}  // namespace attnd

#endif  // ATTND_COST_PROBLEM_FAMILY_H_
