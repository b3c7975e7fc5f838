// The two matrix products of a tile, scores and weights times values, as
// functions that keep a block of results in registers. They are behind pointers
// so that a tile has the same code for f32 and for bf16. Operands are words of
// 4 bytes: one f32, or a pair of bf16. A step is what one word covers of the
// dimension that is summed over: one head dimension or key, or two of them.
#ifndef ATTND_CORE_KERNELS_MICROKERNELS_H_
#define ATTND_CORE_KERNELS_MICROKERNELS_H_

#include <cstddef>
#include <cstdint>

#include "core/geometry.h"

namespace attnd {

// Brings memory that the next phase of a tile will read into the second-level
// cache: one cache line for each step of the current product. A third of the
// speed comes from this on a core whose outer caches are slow or shared
// (docs/performance.md).
class PrefetchCursor {
 public:
  static constexpr int64_t kLineBytes = 64;

  // Begins at `from`. If `advance` is false, every step prefetches the same
  // lines; pass this if there is nothing to prefetch.
  PrefetchCursor(const void* from, bool advance)
      : at_(static_cast<const char*>(from)), step_(advance ? kLineBytes : 0) {}

  // Prefetches the lines of the next `kSteps` steps.
  template <int kSteps>
  void Next() {
#pragma GCC unroll 8
    for (int i = 0; i < kSteps; ++i) {
      __builtin_prefetch(at_ + i * kLineBytes, 0, 2);
    }
    at_ += kSteps * step_;
  }

 private:
  const char* at_;
  int64_t step_;
};

// Computes scores[r][column] = sum over steps of q[r][step] *
// panel[step][column]. row_max[r] is a SIMD vector; each of its lanes becomes
// the maximum of itself and the scores that were computed in that lane. Rows of
// q are q_stride words apart. `panel` has one row of keys for each step, as
// wide as a whole panel even if fewer columns are computed.
using ScoreBlockFn = void (*)(const float* q, int64_t q_stride,
                              const float* panel, int64_t steps, float* scores,
                              int64_t score_stride, float* row_max,
                              PrefetchCursor ahead);

// Computes output[r][column] += sum over steps of weights[r][step] *
// value[step][column]. The rows of `value` are exactly as wide as the block of
// columns that is computed. That width is a compile-time constant, so computing
// addresses takes no instructions of its own.
using ValueBlockFn = void (*)(const float* weights, int64_t weight_stride,
                              const float* value, int64_t steps, float* output,
                              int64_t output_stride, PrefetchCursor ahead);

// Microkernels for each number of rows and of SIMD vectors of columns, up to
// those of Geometry. So the edge of a matrix takes a smaller microkernel, never
// a scalar loop. The indices are [rows - 1][vectors - 1].
struct Microkernels {
  static constexpr int64_t kMaxRows = 6;
  static constexpr int64_t kMaxVectors = 4;

  ScoreBlockFn score[kMaxRows][kMaxVectors];
  ValueBlockFn value[kMaxRows][kMaxVectors];
  // Reads the transposed matrix of weights, weights[step][r], whose rows are
  // weight_stride words apart. Only for f32.
  ValueBlockFn value_transposed[kMaxRows][kMaxVectors];
};

// Returns the microkernels for bf16 pairs, which use VDPBF16PS of AVX-512 or
// BFDOT of ARM. Use them only if HasBf16Dot().
const Microkernels& Bf16DotMicrokernels();

// Return whether this processor has such an instruction, and whether it is
// faster on this processor than the f32 microkernels.
bool HasBf16Dot();
bool PrefersBf16Dot();

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_MICROKERNELS_H_
