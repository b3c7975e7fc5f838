#include "core/visibility.h"

#include <cstddef>
#include <limits>
#include <optional>
#include <utility>

#include "absl/numeric/int128.h"
#include "base/checked_math.h"

namespace attnd {
namespace {

// Returns the sum of clamp(i + shift, 0, limit) over rows 0 <= i < rows. The
// sum has up to 126 bits if the sequences are as long as an int64 can say.
template <typename Int>
Int SumOfRamp(Int rows, Int shift, Int limit) {
  // The terms are 0, then grow by 1 from row to row, then are `limit`.
  const Int begin = std::clamp<Int>(-shift, 0, rows);
  const Int end = std::clamp<Int>(limit - shift, begin, rows);
  const Int steps = end - begin;
  Int ramp = 0;
  if (steps > 0) {
    // The sum is steps * (first + last) / 2. Halving the factor that is even
    // keeps the product from overflowing.
    const Int ends = 2 * (begin + shift) + steps - 1;
    ramp = steps % 2 == 0 ? steps / 2 * ends : ends / 2 * steps;
  }
  return ramp + (rows - end) * limit;
}

int64_t At(const std::vector<int64_t>& list, int64_t index) {
  return list[static_cast<size_t>(index)];
}

}  // namespace

int64_t BatchEntry::VisiblePairs() const {
  constexpr int64_t kShort = int64_t{1} << 30;
  if (std::max(q_len, kv_len) <= kShort) {
    return SumOfRamp(q_seeing, last + 1, kv_len) -
           SumOfRamp(q_seeing, first, kv_len);
  }
  using Wide = absl::int128;
  const Wide pairs = SumOfRamp<Wide>(q_seeing, Wide(last) + 1, kv_len) -
                     SumOfRamp<Wide>(q_seeing, first, kv_len);
  return static_cast<int64_t>(std::min<Wide>(pairs, kMaxInt64));
}

Visibility::Visibility(const AttentionParams& params,
                       std::shared_ptr<const AttentionOptions> options)
    : batch_(params.batch),
      q_len_(params.q_len),
      kv_len_(params.kv_len),
      uniform_(!params.ragged && options->query_lengths.empty() &&
               options->key_lengths.empty() &&
               options->query_offsets.size() <= 1),
      options_(std::move(options)) {}

BatchEntry Visibility::Entry(int64_t index) const {
  BatchEntry entry;
  const AttentionOptions& o = *options_;
  entry.batch = index;
  entry.q_len = q_len_;
  entry.kv_len = kv_len_;
  if (!o.cu_seqlens_q.empty()) {
    entry.batch = 0;
    entry.q_begin = At(o.cu_seqlens_q, index);
    entry.kv_begin = At(o.cu_seqlens_k, index);
    entry.q_len = At(o.cu_seqlens_q, index + 1) - entry.q_begin;
    entry.kv_len = At(o.cu_seqlens_k, index + 1) - entry.kv_begin;
  }
  entry.q_seeing =
      o.query_lengths.empty() ? entry.q_len : At(o.query_lengths, index);
  entry.kv_extent = entry.kv_len;
  if (!o.key_lengths.empty()) entry.kv_len = At(o.key_lengths, index);

  if (!o.query_offsets.empty()) {
    entry.shift = At(o.query_offsets, o.query_offsets.size() == 1 ? 0 : index);
  } else if (o.causal == Causal::kBottomRight) {
    entry.shift = entry.kv_len - entry.q_seeing;
  }
  // A window of this size hides nothing because no position is so far from any
  // key. It is small enough that no sum with it overflows.
  static constexpr int64_t kUnbounded = 4 * kMaxPosition;
  const auto bound = [](const std::optional<int64_t>& window) {
    return std::min(window.value_or(kUnbounded), kUnbounded);
  };
  // A row of a problem that only has its costs estimated may be so far before
  // the first key that this overflows. Such a row sees key 0 first, too.
  entry.first = CheckedSum({entry.shift, -bound(o.window_left)})
                    .value_or(std::numeric_limits<int64_t>::min());
  entry.last =
      entry.shift + (o.causal != Causal::kNone ? 0 : bound(o.window_right));
  return entry;
}

int64_t Visibility::VisiblePairs() const {
  if (batch_ == 0) return 0;
  if (uniform_) return SaturatingProduct({batch_, Entry(0).VisiblePairs()});
  int64_t pairs = 0;
  for (int64_t b = 0; b < batch_; ++b) {
    pairs = SaturatingSum({pairs, Entry(b).VisiblePairs()});
  }
  return pairs;
}

}  // namespace attnd
