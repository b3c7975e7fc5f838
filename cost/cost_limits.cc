#include "cost/cost_limits.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/numeric/int128.h"
#include "absl/status/statusor.h"
#include "base/checked_math.h"
#include "cost/monotone_search.h"
#include "cost/problem_family.h"

namespace attnd {
namespace {

// How much of a limit a cost uses.
struct Use {
  int64_t wanted;
  int64_t limit;
  std::string_view name;
};

// Returns the limit that `cost` comes closest to, or exceeds by most.
Use ScarcestLimit(const QueryCost& cost, const CostLimits& limits) {
  const Use uses[] = {
      {cost.call.required_message_bytes, limits.max_message_bytes,
       kMessageSizeLimit},
      {cost.peak_bytes, limits.budget_bytes, kMemoryBudgetLimit},
      {cost.concurrency, limits.max_in_flight, kMaxInFlightLimit}};
  return *std::max_element(std::begin(uses), std::end(uses),
                           [](const Use& a, const Use& b) {
                             return absl::uint128(a.wanted) * b.limit <
                                    absl::uint128(b.wanted) * a.limit;
                           });
}

// Returns the limit that stops the sequences of `query` from growing further.
// `query` itself fits.
//
// Longer sequences may take less memory (kernel_plan.h), but never smaller
// messages. So this looks for the longest ones that every limit but the memory
// budget allows. If they also fit the budget, they are the longest that fit,
// and what stops them is what forbids the next longer ones. Otherwise the
// longest that fit are shorter, and only the budget can stop those.
std::string_view LimitOfLongerSequences(const CostQuery& query,
                                        CostLimits limits) {
  const int64_t budget_bytes = std::exchange(limits.budget_bytes, kMaxInt64);
  limits.max_in_flight = kMaxInt64;  // all members have as many calls
  ProblemFamily family = ProblemFamily::WithLongerSequences(query);
  const auto probe = [&](int64_t size) {
    const absl::StatusOr<QueryCost> cost = family.CostAt(size);
    return cost.ok() ? ProbeLimits(*cost, limits) : SizeProbe();
  };
  const int64_t longest = LargestThatFits(
      std::max(query.q_len.value, query.kv_len.value), kMaxInt64 - 1, probe);
  const absl::StatusOr<QueryCost> cost = family.CostAt(longest);
  if (cost.ok() && cost->peak_bytes > budget_bytes) return kMemoryBudgetLimit;
  const absl::StatusOr<QueryCost> next = family.CostAt(longest + 1);
  return next.ok() ? ExceededLimit(*next, limits) : kInt64RangeLimit;
}

}  // namespace

std::string_view ExceededLimit(const QueryCost& cost,
                               const CostLimits& limits) {
  const Use scarcest = ScarcestLimit(cost, limits);
  if (scarcest.wanted > scarcest.limit) return scarcest.name;
  return cost.in_int64_range ? std::string_view() : kInt64RangeLimit;
}

SizeProbe ProbeLimits(const QueryCost& cost, const CostLimits& limits) {
  const Use scarcest = ScarcestLimit(cost, limits);
  return {.fits = scarcest.wanted <= scarcest.limit && cost.in_int64_range,
          .use = static_cast<double>(scarcest.wanted) /
                 static_cast<double>(scarcest.limit)};
}

LimitCheck CheckLimits(const CostQuery& query, const QueryCost& cost,
                       const CostLimits& limits) {
  const std::string_view exceeded = ExceededLimit(cost, limits);
  if (!exceeded.empty()) return {.fits = false, .limiting_factor = exceeded};
  return {.fits = true,
          .limiting_factor = LimitOfLongerSequences(query, limits)};
}

}  // namespace attnd
