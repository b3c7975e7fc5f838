// The matrix products inside a tile on Intel's AMX. A tile register of AMX
// holds 16 rows of 64 bytes. One instruction multiplies two tile registers of
// bf16 pairs and adds the result to a third one of f32 sums. That is 16 times
// the work of two multiply-adds of 512 bits. These products are in a file of
// their own because a thread must set up its tile registers, and a process must
// ask the operating system for them.
#ifndef ATTND_CORE_KERNELS_AMX_BF16_H_
#define ATTND_CORE_KERNELS_AMX_BF16_H_

#include <cstdint>

#include "core/geometry.h"

namespace attnd {

// Returns whether this processor has AMX for bf16 and the operating system lets
// this process use it. The first call asks the operating system for permission.
// Thread-safe.
bool HasAmxBf16();

// Sets up the tile registers of the current thread, which the functions below
// use. The destructor releases them, so that the operating system need not save
// them any more. Create one before you call the functions, and destroy it on
// the same thread.
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
// these rows. A right-hand side is 16 * `columns` wide, where `columns` is 1 or
// 2. It is packed as core/kernels/pack_tiles-inl.h does it: for every kAmxSteps
// steps each of the terms, and for each term `columns` tiles. `steps` counts
// words along the dimension that is summed over, and is a multiple of
// kAmxSteps.
//
// Every number of an operand is stored as `kTerms` bf16 whose sum it is, the
// largest first. kTerms is 1 or kBf16Terms.

// A left-hand side of a product. Owns nothing.
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

// Computes the same scores with keys as the left-hand side and queries as the
// right-hand side, both with kBf16Terms terms. So each row of the result
// belongs to a key. Every score has the same bits as AmxScores gives it.
void AmxScoresTransposed(int64_t rows, int64_t columns, const AmxLeft& keys,
                         const float* q, int64_t steps, float* scores,
                         int64_t score_stride);

// Computes output[r][column] += sum over steps first <= step < last of
// weights[r][step] * values[step][column]. If `fresh`, overwrites the output
// instead of adding to it. `values` is packed in chunks of kKeysPerSum keys;
// each begins `chunk_words` words after the one before.
template <int kTerms>
void AmxAddValues(int64_t rows, int64_t columns, const AmxLeft& weights,
                  const float* values, int64_t chunk_words, int64_t first,
                  int64_t last, bool fresh, float* output,
                  int64_t output_stride);

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_AMX_BF16_H_
