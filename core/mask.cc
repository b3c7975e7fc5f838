#include "core/mask.h"

namespace attnd {

Mask::Mask(const AttentionParams& params)
    : causal_(params.causal != Causal::kNone),
      q_len_(params.q_len),
      kv_len_(params.kv_len),
      shift_(params.causal == Causal::kBottomRight
                 ? params.kv_len - params.q_len
                 : 0) {}

int64_t Mask::VisiblePairs() const {
  if (!causal_) return q_len_ * kv_len_;
  // Row i sees clamp(i + first, 0, kv_len) keys: none, then a ramp that grows
  // by one a row, then all of them.
  const int64_t first = shift_ + 1;
  const int64_t ramp_begin = std::clamp<int64_t>(1 - first, 0, q_len_);
  const int64_t ramp_end =
      std::clamp<int64_t>(kv_len_ - first, ramp_begin, q_len_);
  const int64_t rows = ramp_end - ramp_begin;
  // rows * (first key count + last key count) is even; halve the even factor.
  const int64_t sum = 2 * (ramp_begin + first) + rows - 1;
  const int64_t ramp = rows % 2 == 0 ? rows / 2 * sum : sum / 2 * rows;
  return ramp + (q_len_ - ramp_end) * kv_len_;
}

}  // namespace attnd
