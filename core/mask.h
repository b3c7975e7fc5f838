// Which keys a query row may see by position, and where a batch entry lies in
// the tensors. The one place that knows causal rules, windows, lengths and
// ragged batches; kernels ask for ranges and never learn where they come from.
#ifndef ATTND_CORE_MASK_H_
#define ATTND_CORE_MASK_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/attention_params.h"

namespace attnd {

// Keys begin <= j < end. Empty where begin == end.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const KeyRange&, const KeyRange&) = default;
};

// One batch entry. Rows and keys count from the entry's own first.
struct BatchEntry {
  int64_t batch = 0;      // along the tensors' batch axis
  int64_t q_begin = 0;    // its first row along the tensors' seq axis
  int64_t kv_begin = 0;   // its first key there
  int64_t q_len = 0;      // rows that it answers
  int64_t kv_len = 0;     // keys that any row may see, the first of
  int64_t kv_extent = 0;  // those that lie in the tensors
  int64_t q_seeing = 0;   // rows from here on see nothing
  int64_t shift = 0;      // p(i) - i
  int64_t first = 0;      // row i sees keys from i + first
  int64_t last = 0;       // to i + last, both included, as far as they exist

  // p(i), which causal, windows and ALiBi count from.
  int64_t Position(int64_t q_row) const { return q_row + shift; }

  // The keys that row `q_row` sees; within [0, kv_len).
  KeyRange VisibleRange(int64_t q_row) const {
    if (q_row >= q_seeing) return {};
    const int64_t begin = std::clamp<int64_t>(q_row + first, 0, kv_len);
    return {begin, std::clamp<int64_t>(q_row + last + 1, begin, kv_len)};
  }

  // Pairs of row and key that one head sees. At most q_len * kv_len, which the
  // caller has checked to fit an int64.
  int64_t VisiblePairs() const;
};

// Immutable and cheap to copy; safe to share between threads.
class Mask {
 public:
  // The largest |query_offsets|.
  static constexpr int64_t kMaxPosition = int64_t{1} << 60;

  // Both checked: AttentionProblem::Create is who calls this.
  Mask(const AttentionParams& params,
       std::shared_ptr<const AttentionOptions> options);

  // Batch entry `index`, below params.batch. Of constant cost.
  BatchEntry Entry(int64_t index) const;

  // Whether entries may differ from one another.
  bool uniform() const { return uniform_; }

  // Of all entries, one head each.
  int64_t VisiblePairs() const;

 private:
  int64_t batch_ = 0;
  int64_t q_len_ = 0;
  int64_t kv_len_ = 0;
  bool uniform_ = true;
  std::shared_ptr<const AttentionOptions> options_;
};

}  // namespace attnd

#endif  // ATTND_CORE_MASK_H_
