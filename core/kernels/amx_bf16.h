// The products inside a tile on Intel's AMX. A tile register holds 16 rows of
// 64 bytes. One instruction multiplies two tile registers of bf16 pairs and
// adds to a third one of f32 sums, which is 16 times the work of two
// multiply-adds of 512 bits. These products have a file of their own because
// the registers are state of the thread and of the process.
#ifndef ATTND_CORE_KERNELS_AMX_BF16_H_
#define ATTND_CORE_KERNELS_AMX_BF16_H_

#include <cstdint>

#include "core/geometry.h"

namespace attnd {

// Returns whether this processor has AMX for bf16 and the kernel lets this
// process use it. The first call asks the kernel for that. Thread-safe.
bool HasAmxBf16();

// Sets the tile registers of its thread up for the functions below, for as long
// as it lives. Then it releases them, so that the kernel need not save them.
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
// one or two `columns` of them: for each kAmxSteps steps its terms, for each
// term its tiles. `steps` is a multiple of kAmxSteps.
//
// Every number of an operand is the sum of `kTerms` bf16, the largest first.
// kTerms is 1 or kBf16Terms.

struct AmxLeft {
  const float* first;
  int64_t stride;      // words from row to row
  int64_t term_words;  // from one term of a row to the next
};

// scores[r][column] = sum over steps of q[r][step] * keys[step][column].
template <int kTerms>
void AmxScores(int64_t rows, int64_t columns, const AmxLeft& q,
               const float* keys, int64_t steps, float* scores,
               int64_t score_stride);

// The same with keys on the left and queries on the right, kBf16Terms terms
// each. Makes the bits that AmxScores makes.
void AmxScoresTransposed(int64_t rows, int64_t columns, const AmxLeft& keys,
                         const float* q, int64_t steps, float* scores,
                         int64_t score_stride);

// output[r][column] += sum over steps first <= step < last of weights[r][step]
// * values[step][column]. If `fresh`, the output is set instead. Values come in
// chunks of kKeysPerSum keys, each `chunk_words` after the one before it.
template <int kTerms>
void AmxAddValues(int64_t rows, int64_t columns, const AmxLeft& weights,
                  const float* values, int64_t chunk_words, int64_t first,
                  int64_t last, bool fresh, float* output,
                  int64_t output_stride);

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_AMX_BF16_H_
