// Finds out whether calls fit within the limits of a server, and which limit
// stops larger ones.
#ifndef ATTND_COST_COST_LIMITS_H_
#define ATTND_COST_COST_LIMITS_H_

#include <cstdint>
#include <string_view>

#include "cost/cost_query.h"

namespace attnd {

// The limits of a server.
struct CostLimits {
  int64_t max_message_bytes = 0;  // for one message
  int64_t budget_bytes = 0;       // for all calls together
  int64_t max_in_flight = 0;      // how many calls run at the same time
};

struct LimitCheck {
  bool fits = false;  // whether the cost exceeds no limit
  // The limit that stops larger problems: "message_size", "memory_budget" or
  // "max_in_flight". If the sequences of the query grow in proportion, this is
  // the limit that they exceed first. It is "int64_range" if a figure stops
  // fitting a signed 64-bit number before any limit is exceeded.
  std::string_view limiting_factor;
};

// Compares `cost`, which must be the cost of `query`, with `limits`.
LimitCheck CheckLimits(const CostQuery& query, const QueryCost& cost,
                       const CostLimits& limits);

}  // namespace attnd

#endif  // ATTND_COST_COST_LIMITS_H_
