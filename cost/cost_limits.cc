#include "cost/cost_limits.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "absl/status/statusor.h"
#include "base/attention_options.h"

namespace attnd {
namespace {

int64_t ListedNumbers(const AttentionOptions& options) {
  size_t numbers = 0;
  ForEachOption([&](const char*, auto member, const auto&...) {
    const auto& option = member(options);
    if constexpr (kIsList<std::remove_cvref_t<decltype(option)>>) {
      numbers += option.size();
    }
  });
  return static_cast<int64_t>(numbers);
}

// Returns a number between `low` and `high`. It is near their geometric mean if
// they are far apart, and otherwise it is their mean.
int64_t Between(int64_t low, int64_t high) {
  const auto ratio = static_cast<uint64_t>(high / low);
  return ratio > 4 ? low << (std::bit_width(ratio) / 2)
                   : low + (high - low) / 2;
}

// The limits that a cost exceeds.
struct ExceededLimits {
  int64_t count = 0;
  std::string_view largest;  // the limit that is exceeded by the largest factor
};

ExceededLimits LimitsExceededBy(const QueryCost& cost,
                                const CostLimits& limits) {
  const auto share = [](int64_t wanted, int64_t limit) {
    return static_cast<double>(wanted) / static_cast<double>(limit);
  };
  const std::pair<double, std::string_view> shares[] = {
      {share(cost.call.required_message_bytes, limits.max_message_bytes),
       "message_size"},
      {share(cost.peak_bytes, limits.budget_bytes), "memory_budget"},
      {share(cost.concurrency, limits.max_in_flight), "max_in_flight"}};
  ExceededLimits exceeded;
  double largest = 1;
  for (const auto& [factor, limit] : shares) {
    if (factor <= 1) continue;
    ++exceeded.count;
    if (factor <= largest) continue;
    largest = factor;
    exceeded.largest = limit;
  }
  return exceeded;
}

// Returns LimitCheck::limiting_factor. `exceeded` are the limits that `query`
// itself exceeds.
//
// This is a search, because it is not enough to compare which share of each
// limit `query` takes: some of what a call holds does not grow with its
// sequences. The search looks for a length that exceeds exactly one limit. It
// usually finds one long before it has found the shortest length that does not
// fit. Computing the cost of long lists takes milliseconds in a thread that
// other calls wait for. The search therefore ends early for long lists, and
// returns the limit that is exceeded by the largest factor.
std::string_view LimitingFactor(const CostQuery& query, ExceededLimits exceeded,
                                const CostLimits& limits) {
  constexpr int64_t kCostedNumbers = 1 << 20;
  constexpr int64_t kMinCosts = 6;      // enough to find a length
  constexpr int64_t kFirstFactor = 16;  // then 256, 65536, ...
  constexpr int64_t kMaxFactor = int64_t{1} << 32;
  // No problem is this long, because of AttentionProblem::kMaxWork.
  constexpr int64_t kTooLong = int64_t{1} << 62;
  int64_t costs_left =
      std::max(kMinCosts, kCostedNumbers / (1 + ListedNumbers(query.options)));
  const int64_t length = std::max(query.q_len.value, query.kv_len.value);
  const auto exceeded_at = [&](int64_t longer) -> ExceededLimits {
    --costs_left;
    const double factor =
        static_cast<double>(longer) / static_cast<double>(length);
    const absl::StatusOr<QueryCost> cost = CostOf(Scaled(query, factor));
    // If there is no cost, shorter sequences may still exceed a limit, so a
    // count of 2 makes the search go on.
    return cost.ok() ? LimitsExceededBy(*cost, limits)
                     : ExceededLimits{2, "int64_range"};
  };
  int64_t fits = length - 1;
  int64_t too_long = length;
  for (int64_t factor = kFirstFactor; exceeded.count == 0;) {
    fits = too_long;
    too_long = too_long < kTooLong / factor ? too_long * factor : kTooLong;
    exceeded = exceeded_at(too_long);
    if (factor < kMaxFactor) factor *= factor;
  }
  while (exceeded.count > 1 && too_long - fits > 1 && costs_left > 0) {
    const int64_t middle = Between(fits, too_long);
    const ExceededLimits between = exceeded_at(middle);
    if (between.count == 0) {
      fits = middle;
    } else {
      too_long = middle;
      exceeded = between;
    }
  }
  return exceeded.largest;
}

}  // namespace

LimitCheck CheckLimits(const CostQuery& query, const QueryCost& cost,
                       const CostLimits& limits) {
  const ExceededLimits exceeded = LimitsExceededBy(cost, limits);
  return {.fits = exceeded.count == 0,
          .limiting_factor = LimitingFactor(query, exceeded, limits)};
}

}  // namespace attnd
