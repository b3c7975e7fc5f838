// The two register-blocked products inside a tile, behind function pointers: a
// tile is the same whether its products are f32 or bf16. Operands are words of
// 4 bytes, one f32 or a pair of bf16, and a step is what one word covers: a
// dimension or a key, or two of them.
#ifndef ATTND_CORE_KERNELS_MICROKERNELS_H_
#define ATTND_CORE_KERNELS_MICROKERNELS_H_

#include <cstddef>
#include <cstdint>

#include "core/geometry.h"

namespace attnd {

// Memory that the next phase of a tile will read, fetched into the second-level
// cache one line a step while this phase computes: on a core whose outer caches
// are slow or shared this is a third of the speed (docs/performance.md).
class PrefetchCursor {
 public:
  static constexpr int64_t kLineBytes = 64;

  PrefetchCursor(const void* from, bool advance)
      : at_(static_cast<const char*>(from)), step_(advance ? kLineBytes : 0) {}

  // Of `kSteps` steps at once.
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

// scores[r][column] = sum over steps of q[r][step] * panel[step][column], and
// row_max[r] keeps the lane-wise maximum of row_max[r] and the scores. q rows
// are q_stride words apart, steps of the panel a whole panel's width.
using ScoreBlockFn = void (*)(const float* q, int64_t q_stride,
                              const float* panel, int64_t steps, float* scores,
                              int64_t score_stride, float* row_max,
                              PrefetchCursor ahead);

// output[r][column] += sum over steps of weights[r][step] *
// value[step][column], of values packed to the block's own width: a constant
// one leaves its arithmetic to the address units.
using ValueBlockFn = void (*)(const float* weights, int64_t weight_stride,
                              const float* value, int64_t steps, float* output,
                              int64_t output_stride, PrefetchCursor ahead);

// Of rows and vectors, each 1 to the geometry's, so that an edge costs a
// smaller microkernel and never a scalar loop: [rows - 1][vectors - 1].
struct Microkernels {
  static constexpr int64_t kMaxRows = 6;
  static constexpr int64_t kMaxVectors = 4;

  ScoreBlockFn score[kMaxRows][kMaxVectors];
  ValueBlockFn value[kMaxRows][kMaxVectors];
  // With weights the other way round: weights[step][r], weight_stride words a
  // step. Not for pairs.
  ValueBlockFn value_transposed[kMaxRows][kMaxVectors];
};

// Those of bf16 pairs with AVX-512's VDPBF16PS. Only where SupportedIsas() has
// kAvx512Bf16.
const Microkernels& Bf16DotMicrokernels();

// Whether this processor has them, and whether they are faster here than the
// f32 microkernels.
bool HasBf16Dot();
bool PrefersBf16Dot();

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_MICROKERNELS_H_
