// Finds out whether calls fit within the limits of a server, and which limit
// stops larger ones.
#ifndef ATTND_COST_COST_LIMITS_H_
#define ATTND_COST_COST_LIMITS_H_

#include <cstdint>
#include <string_view>

#include "cost/cost_query.h"
#include "cost/memory_shares.h"
#include "cost/monotone_search.h"

namespace attnd {

// The limits of a server. By default, these are the limits of a server that was
// started without options, apart from the budget, which depends on its machine.
struct CostLimits {
  int64_t max_message_bytes = kDefaultMaxMessageBytes;  // for one message
  int64_t budget_bytes = 0;     // for all calls together
  int64_t max_in_flight = 256;  // how many calls run at the same time
};

// The names of the limits in the contract. The last one is not a setting of the
// server: it is exceeded by a problem that is too large to be computed, or that
// has a figure which does not fit a signed 64-bit number.
inline constexpr std::string_view kMessageSizeLimit = "message_size";
inline constexpr std::string_view kMemoryBudgetLimit = "memory_budget";
inline constexpr std::string_view kMaxInFlightLimit = "max_in_flight";
inline constexpr std::string_view kInt64RangeLimit = "int64_range";

// Returns the limit that `cost` exceeds, or nothing if it fits. If it exceeds
// several, returns the one that it exceeds by the largest factor. Returns
// kInt64RangeLimit only if it exceeds no other limit.
std::string_view ExceededLimit(const QueryCost& cost, const CostLimits& limits);

// Returns whether `cost` fits, and how much it uses of the limit of which it
// uses most.
SizeProbe ProbeLimits(const QueryCost& cost, const CostLimits& limits);

struct LimitCheck {
  bool fits = false;  // whether the cost exceeds no limit
  // The limit that the cost exceeds. If it fits, this is the limit that stops
  // longer sequences: if q_len, kv_len and all other lengths grow in
  // proportion, the longest ones that fit cannot grow further because of it.
  std::string_view limiting_factor;
};

// Compares `cost`, which must be the cost of `query`, with `limits`.
LimitCheck CheckLimits(const CostQuery& query, const QueryCost& cost,
                       const CostLimits& limits);

}  // namespace attnd

#endif  // ATTND_COST_COST_LIMITS_H_
