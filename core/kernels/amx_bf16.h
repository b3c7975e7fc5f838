// The products inside a tile on Intel's AMX: a tile register holds 16 rows of
// 64 bytes, and one instruction multiplies two of them of bf16 pairs into a
// third of f32 sums, 16 times the work of two multiply-adds of 512 bits. A file
// of its own because the tiles are state of the thread and of the process;
// packing and softmax are those of bf16_dot.cc's products.
#ifndef ATTND_CORE_KERNELS_AMX_BF16_H_
#define ATTND_CORE_KERNELS_AMX_BF16_H_

#include <cstdint>

#include "core/kernels/geometry.h"

namespace attnd {

// Whether this processor has AMX for bf16 and the kernel lets this process use
// it, which is asked for in the first call. Thread-safe.
bool HasAmxBf16();

// While one lives, its thread's tiles are set up for the two functions below;
// then they are released, so that nobody saves them.
class AmxTiles {
 public:
  AmxTiles();
  ~AmxTiles();
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
};

// Operands are words of 4 bytes, each a pair of bf16, as in
// core/kernels/microkernels.h. Rows are 1 to the geometry's and need not lie
// beside rows that may be read. `steps` is a multiple of kAmxSteps.

// scores[r][column] = sum over steps of q[r][step] * panel[step][column], for
// `vectors` vectors of columns of a packed panel.
void AmxScores(int64_t rows, int64_t vectors, const float* q, int64_t q_stride,
               const float* panel, int64_t steps, float* scores,
               int64_t score_stride);

// Values from one step on: `row_words` a step, a chunk of kKeysPerSum keys
// `chunk_words` after the one before it.
struct AmxValues {
  const float* first;
  int64_t row_words;
  int64_t chunk_words;
};

// output[r][column] += sum over steps first <= step < last of weights[r][step]
// * values[step][column], for `vectors` vectors of columns.
void AmxAddValues(int64_t rows, int64_t vectors, const float* weights,
                  int64_t weight_stride, const AmxValues& values, int64_t first,
                  int64_t last, float* output, int64_t output_stride);

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_AMX_BF16_H_
