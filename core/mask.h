// Which keys a query row may see. The one place that knows causal rules;
// kernels ask for ranges and never learn where they come from.
#ifndef ATTND_CORE_MASK_H_
#define ATTND_CORE_MASK_H_

#include <algorithm>
#include <cstdint>

#include "core/attention_params.h"

namespace attnd {

// Keys begin <= j < end. Empty where begin == end.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const KeyRange&, const KeyRange&) = default;
};

// Immutable, so safe to share between threads.
class Mask {
 public:
  Mask() = default;
  explicit Mask(const AttentionParams& params);

  // The keys that query row `q_row` of `head` sees; within [0, kv_len).
  KeyRange VisibleRange([[maybe_unused]] int64_t head, int64_t q_row) const {
    if (!causal_) return {0, kv_len_};
    return {0, std::clamp<int64_t>(q_row + shift_ + 1, 0, kv_len_)};
  }

  // Pairs of query row and key that one head of one batch entry sees. At most
  // q_len * kv_len, which the caller has checked to fit an int64.
  int64_t VisiblePairs() const;

 private:
  bool causal_ = false;
  int64_t q_len_ = 0;
  int64_t kv_len_ = 0;
  int64_t shift_ = 0;  // p(i) - i
};

}  // namespace attnd

#endif  // ATTND_CORE_MASK_H_
