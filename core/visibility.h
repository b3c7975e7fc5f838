// Answers which keys a query row may see by position and lengths, and where a
// batch entry lies in the tensors. This is the only place that knows causal
// rules, windows, lengths and ragged batches: kernels ask for ranges and do not
// know where these come from. The mask tensor and -inf in the bias hide further
// keys; kernels apply those themselves (core/kernels/row_tile-inl.h).
#ifndef ATTND_CORE_VISIBILITY_H_
#define ATTND_CORE_VISIBILITY_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/attention_params.h"

namespace attnd {

// The keys begin <= j < end. The range is empty if begin == end.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const KeyRange&, const KeyRange&) = default;
};

// The lengths and places of one batch entry. Its query rows and its keys are
// numbered from 0, wherever the entry begins in the tensors.
struct BatchEntry {
  int64_t batch = 0;      // index along the tensors' batch axis
  int64_t q_begin = 0;    // index of row 0 along the tensors' seq axis
  int64_t kv_begin = 0;   // index of key 0 along the tensors' seq axis
  int64_t q_len = 0;      // number of query rows, padding included
  int64_t kv_len = 0;     // number of keys without padding, which rows may see
  int64_t kv_extent = 0;  // number of keys in the tensors, padding included
  int64_t q_seeing = 0;   // rows from this one on are padding and see no key
  int64_t shift = 0;      // position of row i, minus i
  int64_t first = 0;      // row i sees no key before i + first,
  int64_t last = 0;       // and none after i + last

  // Returns the position of row `q_row` among the keys. Causal rules, windows
  // and ALiBi measure distances from it.
  int64_t Position(int64_t q_row) const { return q_row + shift; }

  // Returns the keys that row `q_row` sees, a part of [0, kv_len).
  KeyRange VisibleRange(int64_t q_row) const {
    if (q_row >= q_seeing) return {};
    const int64_t begin = std::clamp<int64_t>(q_row + first, 0, kv_len);
    return {begin, std::clamp<int64_t>(q_row + last + 1, begin, kv_len)};
  }

  // Returns the number of pairs of a row and a key that the row sees, for one
  // head. Saturates (base/checked_math.h).
  int64_t VisiblePairs() const;
};

// Which keys the query rows of each batch entry may see. AttentionProblem makes
// it. Immutable, cheap to copy, and safe to share between threads.
class Visibility {
 public:
  // The largest magnitude of a query offset.
  static constexpr int64_t kMaxPosition = int64_t{1} << 60;

  // Requires arguments that AttentionProblem::Create has checked.
  Visibility(const AttentionParams& params,
             std::shared_ptr<const AttentionOptions> options);

  // Returns batch entry `index`, 0 <= index < params.batch, in constant time.
  BatchEntry Entry(int64_t index) const;

  // Returns whether all batch entries have the same lengths and rules, so that
  // they differ only in their place in the tensors.
  bool uniform() const { return uniform_; }

  // Returns the number of pairs of a row and a key that the row sees: the sum
  // over all entries, for one head. Saturates.
  int64_t VisiblePairs() const;

 private:
  int64_t batch_ = 0;
  int64_t q_len_ = 0;
  int64_t kv_len_ = 0;
  bool uniform_ = true;
  std::shared_ptr<const AttentionOptions> options_;
};

}  // namespace attnd

#endif  // ATTND_CORE_VISIBILITY_H_
