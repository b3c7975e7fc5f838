#include "cost/largest_fit.h"

#include <algorithm>
#include <optional>

#include "base/status_macros.h"

namespace attnd {
namespace {

// Returns `query` with the size that `goal` searches.
absl::StatusOr<CostQuery> WithSize(CostQuery query, EstimateGoal goal,
                                   int64_t size) {
  switch (goal) {
    case EstimateGoal::kMaxSeqLen:
      query.seq_len.value = size;
      break;
    case EstimateGoal::kMaxBatch:
      query.batch.value = size;
      break;
    default:
      query.concurrency.value = size;
  }
  ATTND_RETURN_IF_ERROR(query.SetDefaults());
  return query;
}

bool Fits(const QueryCost& cost, const CostLimits& limits) {
  return cost.call.required_message_bytes <= limits.max_message_bytes &&
         cost.peak_bytes <= limits.budget_bytes &&
         cost.concurrency <= limits.max_in_flight;
}

}  // namespace

absl::StatusOr<LargestFit> FindLargestFit(const CostQuery& query,
                                          EstimateGoal goal,
                                          const CostLimits& limits) {
  const auto cost_of = [&](int64_t size) -> absl::StatusOr<QueryCost> {
    ATTND_ASSIGN_OR_RETURN(const CostQuery sized, WithSize(query, goal, size));
    return CostOf(sized);
  };
  ATTND_ASSIGN_OR_RETURN(QueryCost cost, cost_of(1));
  LargestFit largest{.size = 0, .cost = cost, .limiting_factor = {}};
  int64_t too_large = int64_t{1} << 62;
  if (Fits(cost, limits)) {
    largest.size = 1;
  } else {
    too_large = 1;
  }
  while (too_large - largest.size > 1) {
    const int64_t middle = largest.size + (too_large - largest.size) / 2;
    const auto between = cost_of(middle);
    if (between.ok() && Fits(*between, limits)) {
      largest.size = middle;
      largest.cost = *between;
    } else {
      too_large = middle;
    }
  }
  const auto next = cost_of(too_large);
  if (!next.ok()) {
    largest.limiting_factor = "int64_range";
  } else if (next->call.required_message_bytes > limits.max_message_bytes) {
    largest.limiting_factor = "message_size";
  } else {
    largest.limiting_factor = next->peak_bytes > limits.budget_bytes
                                  ? "memory_budget"
                                  : "max_in_flight";
  }
  return largest;
}

}  // namespace attnd
