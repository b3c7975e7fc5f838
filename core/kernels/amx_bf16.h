// The products inside a tile on Intel's AMX: a tile register holds 16 rows of
// 64 bytes, and one instruction multiplies two of them of bf16 pairs into a
// third of f32 sums, 16 times the work of two multiply-adds of 512 bits. A file
// of its own because the tiles are state of the thread and of the process;
// packing and softmax are those of bf16_dot.cc's products.
#ifndef ATTND_CORE_KERNELS_AMX_BF16_H_
#define ATTND_CORE_KERNELS_AMX_BF16_H_

#include <cstdint>

#include "core/geometry.h"

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

// Operands are words of 4 bytes, each a pair of bf16. On the left they are
// rows, 1 to the geometry's, which need not lie beside rows that may be read.
// On the right they are tiles as core/kernels/pack_tiles-inl.h lays them out,
// one or two `columns` of them: for each kAmxSteps steps its parts, for each
// part its tiles. `steps` is a multiple of kAmxSteps.
//
// Every operand is the sum of `parts` of them, 1 or kBf16PartsOfF32, the
// largest first.

struct AmxLeft {
  const float* first;
  int64_t stride;      // words from row to row
  int64_t part_words;  // from one part of a row to the next
};

// scores[r][column] = sum over steps of q[r][step] * keys[step][column].
void AmxScores(int64_t parts, int64_t rows, int64_t columns, const AmxLeft& q,
               const float* keys, int64_t steps, float* scores,
               int64_t score_stride);

// The same with the sides changed over, keys on the left and queries on the
// right, to the bit.
void AmxTurnedScores(int64_t parts, int64_t rows, int64_t columns,
                     const AmxLeft& keys, const float* q, int64_t steps,
                     float* scores, int64_t score_stride);

// output[r][column] += sum over steps first <= step < last of weights[r][step]
// * values[step][column]; = where it is `fresh`. Values come in chunks of
// kKeysPerSum keys, each `chunk_words` after the one before it.
void AmxAddValues(int64_t parts, int64_t rows, int64_t columns,
                  const AmxLeft& weights, const float* values,
                  int64_t chunk_words, int64_t first, int64_t last, bool fresh,
                  float* output, int64_t output_stride);

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_AMX_BF16_H_
