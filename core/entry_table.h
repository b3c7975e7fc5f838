// Where each batch entry's tasks and memory begin when those of all entries are
// numbered one after the other. Knows counts alone: entries may be alike, and
// then none of them is listed, or each of its own size.
#ifndef ATTND_CORE_ENTRY_TABLE_H_
#define ATTND_CORE_ENTRY_TABLE_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace attnd {

// N kinds of things are counted. Immutable; safe to share between threads.
template <size_t N>
class EntryTable {
 public:
  using Counts = std::array<int64_t, N>;

  // A thing as its entry has it.
  struct Place {
    int64_t entry = 0;
    int64_t index = 0;  // among the entry's own of its kind
  };

  EntryTable() = default;

  // `entries` entries of `each`. All products must fit an int64.
  EntryTable(int64_t entries, const Counts& each) : each_(each) {
    for (size_t kind = 0; kind < N; ++kind) total_[kind] = entries * each[kind];
  }

  // One entry after the other by falling `work`, so that what takes longest is
  // numbered first.
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
        total_[kind] += counts[entry][kind];
      }
    }
  }

  int64_t Total(size_t kind) const { return total_[kind]; }

  // The number of the entry's first of a kind.
  int64_t First(size_t kind, int64_t entry) const {
    if (starts_.empty()) return entry * each_[kind];
    return starts_[static_cast<size_t>(places_[static_cast<size_t>(entry)])]
                  [kind];
  }

  // Which entry number `number` of a kind belongs to; below Total().
  Place Locate(size_t kind, int64_t number) const {
    if (starts_.empty()) {
      return {number / each_[kind], number % each_[kind]};
    }
    // The last that starts at or before it; those before it that start there
    // too have none of this kind.
    const auto after = std::upper_bound(
        starts_.begin(), starts_.end(), number,
        [kind](int64_t n, const Counts& start) { return n < start[kind]; });
    const auto place = static_cast<size_t>(after - starts_.begin() - 1);
    return {order_[place], number - starts_[place][kind]};
  }

 private:
  Counts each_{};
  Counts total_{};
  std::vector<Counts> starts_;   // by place; empty where entries are alike
  std::vector<int32_t> order_;   // place -> entry
  std::vector<int32_t> places_;  // entry -> place
};

}  // namespace attnd

#endif  // ATTND_CORE_ENTRY_TABLE_H_
