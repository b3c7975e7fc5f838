#include "cost/memory_shares.h"

#include <algorithm>

#include "base/checked_math.h"

namespace attnd {
namespace {

constexpr int64_t kMinArrivingBytes = int64_t{64} << 20;

int64_t MaxArrivingBytes(int64_t max_message_bytes) {
  return std::max(16 * max_message_bytes, kMinArrivingBytes);
}

}  // namespace

int64_t MemoryShares::total_bytes() const {
  return SaturatingSum({budget_bytes, arriving_bytes, own_bytes});
}

MemoryShares ShareMemory(const MemoryOptions& options,
                         int64_t available_bytes) {
  constexpr int64_t kMinOwnBytes = int64_t{256} << 20;
  const int64_t largest = options.max_message_bytes;
  const int64_t max_arriving = MaxArrivingBytes(largest);
  if (options.budget_bytes > 0) {
    return {.budget_bytes = options.budget_bytes,
            .arriving_bytes =
                std::max({std::min(max_arriving, options.budget_bytes / 2),
                          largest / 4 * 5, kMinArrivingBytes}),
            .own_bytes = kMinOwnBytes};
  }
  const int64_t quarter = available_bytes / 4;
  MemoryShares shares;
  shares.own_bytes =
      std::min(std::max(available_bytes / 10, kMinOwnBytes), quarter);
  shares.arriving_bytes = std::min(max_arriving, quarter);
  shares.budget_bytes =
      available_bytes - shares.own_bytes - shares.arriving_bytes;
  return shares;
}

bool SharesHold(const MemoryShares& shares, const MemoryNeed& need,
                int64_t max_message_bytes) {
  return shares.budget_bytes >= need.peak_bytes &&
         shares.own_bytes >= kCodeBytes &&
         (shares.arriving_bytes / 5 * 4 >= need.arriving_bytes ||
          shares.arriving_bytes >= MaxArrivingBytes(max_message_bytes));
}

std::optional<int64_t> SmallestMemoryLimit(const MemoryNeed& need,
                                           int64_t max_message_bytes) {
  constexpr int64_t kMib = int64_t{1} << 20;
  const auto holds = [&](int64_t limit_mib) {
    return SharesHold(
        ShareMemory({.max_message_bytes = max_message_bytes}, limit_mib * kMib),
        need, max_message_bytes);
  };
  int64_t too_small = 0;
  int64_t enough = kMaxInt64 / kMib;
  if (!holds(enough)) return std::nullopt;
  // Each share grows with the limit, or stays the same.
  while (enough - too_small > 1) {
    const int64_t middle = too_small + (enough - too_small) / 2;
    (holds(middle) ? enough : too_small) = middle;
  }
  return enough * kMib;
}

}  // namespace attnd
