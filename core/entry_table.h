// Numbers things that every batch entry has (tasks, tiles or rows) through all
// entries, and tells where the numbers of an entry begin. If all entries have
// the same counts, they are stored once; otherwise they are stored for each
// entry.
#ifndef ATTND_CORE_ENTRY_TABLE_H_
#define ATTND_CORE_ENTRY_TABLE_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "base/checked_math.h"

namespace attnd {

// Numbers N kinds of things. The numbers of each kind begin at 0. Immutable and
// safe to share between threads. A total that does not fit an int64 is
// kMaxInt64.
template <size_t N>
class EntryTable {
 public:
  using Counts = std::array<int64_t, N>;

  // The batch entry that a thing belongs to, and the thing's index among those
  // of the same kind in that entry.
  struct Place {
    int64_t entry = 0;
    int64_t index = 0;
  };

  EntryTable() = default;

  // Makes a table of `entries` batch entries that all have the counts `each`.
  EntryTable(int64_t entries, const Counts& each) : each_(each) {
    for (size_t kind = 0; kind < N; ++kind) {
      total_[kind] = SaturatingProduct({entries, each[kind]});
    }
  }

  // Makes a table of batch entries with different counts. The things of the
  // entries with most `work` get the lowest numbers, so that they start first.
  EntryTable(const std::vector<Counts>& counts,
             const std::vector<int64_t>& work)
      : order_(counts.size()), places_(counts.size()) {
    std::iota(order_.begin(), order_.end(), 0);
    std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
      const int64_t work_a = work[static_cast<size_t>(a)];
      const int64_t work_b = work[static_cast<size_t>(b)];
      return work_a != work_b ? work_a > work_b : a < b;
    });
    starts_.reserve(counts.size());
    for (size_t place = 0; place < order_.size(); ++place) {
      const auto entry = static_cast<size_t>(order_[place]);
      places_[entry] = static_cast<int32_t>(place);
      starts_.push_back(total_);
      for (size_t kind = 0; kind < N; ++kind) {
        total_[kind] = SaturatingSum({total_[kind], counts[entry][kind]});
      }
    }
  }

  // Returns how many things of a kind all entries have.
  int64_t Total(size_t kind) const { return total_[kind]; }

  // Returns the number of the first thing of a kind in `entry`.
  int64_t First(size_t kind, int64_t entry) const {
    if (starts_.empty()) return entry * each_[kind];
    return starts_[static_cast<size_t>(places_[static_cast<size_t>(entry)])]
                  [kind];
  }

  // Returns where thing `number` of a kind belongs, 0 <= number < Total(kind).
  Place Locate(size_t kind, int64_t number) const {
    if (starts_.empty()) {
      return {number / each_[kind], number % each_[kind]};
    }
    // The thing belongs to the last entry whose numbers of this kind start at
    // or before `number`. Other entries that start at the same number have
    // nothing of this kind.
    const auto after = std::upper_bound(
        starts_.begin(), starts_.end(), number,
        [kind](int64_t n, const Counts& start) { return n < start[kind]; });
    const auto place = static_cast<size_t>(after - starts_.begin() - 1);
    return {order_[place], number - starts_[place][kind]};
  }

 private:
  Counts each_{};
  Counts total_{};
  // A place is an entry's position in the order of numbering. All three lists
  // are empty if all entries have the same counts.
  std::vector<Counts> starts_;   // by place: the entry's first numbers
  std::vector<int32_t> order_;   // by place: the entry
  std::vector<int32_t> places_;  // by entry: its place
};

}  // namespace attnd

#endif  // ATTND_CORE_ENTRY_TABLE_H_
