// Finds the largest problem that fits within the limits of a server.
#ifndef ATTND_COST_LARGEST_FIT_H_
#define ATTND_COST_LARGEST_FIT_H_

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/types.h"
#include "cost/cost_limits.h"
#include "cost/cost_query.h"

namespace attnd {

struct LargestFit {
  int64_t size = 0;  // 0 if not even 1 fits
  QueryCost cost;    // of the problem of that size, or of size 1
  // The limit that the next larger size exceeds, by its name in cost_limits.h.
  std::string_view limiting_factor;
};

// Returns the largest sequence length, batch or concurrency, depending on
// `goal`, with which `query` fits within `limits`. `goal` must not be
// kEstimate. Do not call SetDefaults first: sizes that are 0 take their
// defaults here, and the value of the size that is searched has no effect. The
// time and memory of the search depend on the lists in the options, but not on
// the answer. INVALID_ARGUMENT names the size or the option that is wrong, or
// that contradicts the goal.
absl::StatusOr<LargestFit> FindLargestFit(const CostQuery& query,
                                          EstimateGoal goal,
                                          const CostLimits& limits);

}  // namespace attnd

#endif  // ATTND_COST_LARGEST_FIT_H_
