// Compares costs with the limits of a server.
#ifndef ATTND_COST_COST_LIMITS_H_
#define ATTND_COST_COST_LIMITS_H_

#include <cstdint>
#include <string_view>

#include "cost/cost_query.h"

namespace attnd {

struct CostLimits {
  int64_t max_message_bytes = 0;
  int64_t budget_bytes = 0;   // of all calls
  int64_t max_in_flight = 0;  // calls
};

struct LimitCheck {
  bool fits = false;  // whether the cost exceeds no limit
  // The limit that stops larger problems: "message_size", "memory_budget" or
  // "max_in_flight". Consider problems with the proportions of the query and
  // with sequences at least as long. The shortest one that does not fit exceeds
  // this limit. It is "int64_range" if a figure no longer fits a signed 64-bit
  // number before a limit is exceeded.
  std::string_view limiting_factor;
};

// `cost` must be the cost of `query`.
LimitCheck CheckLimits(const CostQuery& query, const QueryCost& cost,
                       const CostLimits& limits);

}  // namespace attnd

#endif  // ATTND_COST_COST_LIMITS_H_
