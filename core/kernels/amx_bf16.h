// The matrix products inside a tile on Intel's AMX. A tile register holds 16
// rows of 64 bytes. One instruction multiplies two tile registers of bf16 pairs
// and adds the result to a third one of f32 sums. That is 16 times the work of
// two multiply-adds of 512 bits. These products have a file of their own
// because the registers are state of the thread and of the process.
#ifndef ATTND_CORE_KERNELS_AMX_BF16_H_
#define ATTND_CORE_KERNELS_AMX_BF16_H_

#include <cstdint>

#include "core/geometry.h"

namespace attnd {

// Returns whether this processor has AMX for bf16 and the operating system lets
// this process use it. The first call asks the system for that. Thread-safe.
bool HasAmxBf16();

// Sets up the tile registers of its thread for the functions below, for as long
// as it lives. Then it releases them, so that the operating system need not
// save them. Create one before you call the functions, and use it on one
// thread.
class AmxTiles {
 public:
  AmxTiles();
  ~AmxTiles();
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
};

// Operands consist of words of 4 bytes, each a pair of bf16.
//
// A left-hand side has `rows` rows, 1 to kMaxBlockRows. The functions read only
// these rows. A right-hand side has `columns` columns of tiles, one or two, in
// the layout of core/kernels/pack_tiles-inl.h: for each kAmxSteps steps its
// terms, and for each term its tiles. `steps` is a multiple of kAmxSteps.
//
// Every number of an operand is the sum of `kTerms` bf16, the largest first.
// kTerms is 1 or kBf16Terms.

// A left-hand side. Owns nothing.
struct AmxLeft {
  const float* first;
  int64_t stride;      // words from row to row
  int64_t term_words;  // from one term of a row to the next
};

// Computes scores[r][column] = sum over steps of q[r][step] *
// keys[step][column].
template <int kTerms>
void AmxScores(int64_t rows, int64_t columns, const AmxLeft& q,
               const float* keys, int64_t steps, float* scores,
               int64_t score_stride);

// Computes the same with keys on the left and queries on the right, kBf16Terms
// terms each: a row of the result is a key. The numbers have the same bits as
// those of AmxScores.
void AmxScoresTransposed(int64_t rows, int64_t columns, const AmxLeft& keys,
                         const float* q, int64_t steps, float* scores,
                         int64_t score_stride);

// Computes output[r][column] += sum over steps first <= step < last of
// weights[r][step] * values[step][column]. If `fresh`, sets the output instead
// of adding to it. Values come in chunks of kKeysPerSum keys, each
// `chunk_words` words after the one before it.
template <int kTerms>
void AmxAddValues(int64_t rows, int64_t columns, const AmxLeft& weights,
                  const float* values, int64_t chunk_words, int64_t first,
                  int64_t last, bool fresh, float* output,
                  int64_t output_stride);

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_AMX_BF16_H_
