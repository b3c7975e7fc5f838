#include "cost/largest_fit.h"

#include <vector>

#include "base/checked_math.h"
#include "base/status_macros.h"
#include "cost/monotone_search.h"
#include "cost/problem_family.h"

namespace attnd {

// The answer is the largest size that fits, although a larger problem may take
// less memory than a smaller one: the search goes through the pieces between
// the sizes where this happens, from the largest sizes to the smallest. Within
// a piece no cost ever falls. So if the first size of a piece does not fit, no
// other size of that piece fits, and otherwise the piece has one last size that
// fits. No size of a later piece fits.
absl::StatusOr<LargestFit> FindLargestFit(const CostQuery& query,
                                          EstimateGoal goal,
                                          const CostLimits& limits) {
  ATTND_ASSIGN_OR_RETURN(ProblemFamily family, ProblemFamily::Of(query, goal));
  // If the member of size 1 is valid, all others are.
  ATTND_ASSIGN_OR_RETURN(const QueryCost smallest, family.CostAt(1));
  const auto probe = [&](int64_t size) {
    const absl::StatusOr<QueryCost> cost = family.CostAt(size);
    return cost.ok() ? ProbeLimits(*cost, limits) : SizeProbe();
  };
  LargestFit largest{.size = 0, .cost = smallest, .limiting_factor = {}};
  std::vector<int64_t> firsts = family.sizes_that_may_take_less();
  firsts.insert(firsts.begin(), 1);
  int64_t last = kMaxInt64 - 1;  // a call takes several bytes
  while (!firsts.empty() && largest.size == 0) {
    largest.size = LargestThatFits(firsts.back(), last, probe);
    last = firsts.back() - 1;
    firsts.pop_back();
  }
  ATTND_ASSIGN_OR_RETURN(const QueryCost next, family.CostAt(largest.size + 1));
  largest.limiting_factor = ExceededLimit(next, limits);
  if (largest.size > 0) {
    ATTND_ASSIGN_OR_RETURN(largest.cost, family.CostAt(largest.size));
  }
  return largest;
}

}  // namespace attnd
