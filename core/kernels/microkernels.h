// The two register-blocked products inside a tile, behind function pointers, so
// that a tile has the same code for f32 and for bf16. Operands are words of 4
// bytes: one f32, or a pair of bf16. A step is what one word covers: one
// dimension or key, or two of them.
#ifndef ATTND_CORE_KERNELS_MICROKERNELS_H_
#define ATTND_CORE_KERNELS_MICROKERNELS_H_

#include <cstddef>
#include <cstdint>

#include "core/geometry.h"

namespace attnd {

// Prefetches memory that the next phase of a tile will read into the
// second-level cache, one line for each step of the current phase. On a core
// whose outer caches are slow or shared this makes a third of the speed
// (docs/performance.md).
class PrefetchCursor {
 public:
  static constexpr int64_t kLineBytes = 64;

  // Begins at `from`. Without `advance`, every step prefetches the same lines.
  // This is for phases that have nothing to prefetch.
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
// panel[step][column]. Each lane of row_max[r] becomes the maximum of itself
// and the scores in that lane. Rows of q are q_stride words apart. Steps of the
// panel are as far apart as a whole panel is wide.
using ScoreBlockFn = void (*)(const float* q, int64_t q_stride,
                              const float* panel, int64_t steps, float* scores,
                              int64_t score_stride, float* row_max,
                              PrefetchCursor ahead);

// Computes output[r][column] += sum over steps of weights[r][step] *
// value[step][column]. Values are packed to the width of the block. That width
// is a constant, so the address units do its arithmetic.
using ValueBlockFn = void (*)(const float* weights, int64_t weight_stride,
                              const float* value, int64_t steps, float* output,
                              int64_t output_stride, PrefetchCursor ahead);

// Microkernels for each number of rows and of vectors up to those of the
// geometry, so that an edge takes a smaller microkernel and never a scalar
// loop. The indices are [rows - 1][vectors - 1].
struct Microkernels {
  static constexpr int64_t kMaxRows = 6;
  static constexpr int64_t kMaxVectors = 4;

  ScoreBlockFn score[kMaxRows][kMaxVectors];
  ValueBlockFn value[kMaxRows][kMaxVectors];
  // Reads transposed weights, weights[step][r], where steps are weight_stride
  // words apart. Only for f32.
  ValueBlockFn value_transposed[kMaxRows][kMaxVectors];
};

// Returns the microkernels for bf16 pairs, which use AVX-512's VDPBF16PS. Use
// them only if SupportedIsas() has kAvx512Bf16.
const Microkernels& Bf16DotMicrokernels();

// Return whether this processor has these instructions, and whether they are
// faster here than the f32 microkernels.
bool HasBf16Dot();
bool PrefersBf16Dot();

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_MICROKERNELS_H_
