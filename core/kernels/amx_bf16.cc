// Maths. This file has the two matrix products of
// core/kernels/flash_attention.cc, S = Q K^T and O += P V, and the five of the
// backward pass, for bf16 operands and f32 sums. TDPBF16PS adds 16 pairs at a
// time, even and odd ones apart. So the bits of a sum depend on where its
// groups of 32 dimensions or keys begin. They always begin at multiples of 32
// from the tile's first.
//
// An f32 operand comes as three bf16 terms, x = x0 + x1 + x2, and a product as
// six of the nine products of terms (Henry, Tang, Heinecke, "Leveraging the
// bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations",
// 2019). Six times 16 cycles for 8192 multiply-adds are 2.7 times the speed of
// two multiply-adds of 512 bits in a cycle. A whole tile is about 1 to 1.4
// times as fast, because of the softmax and because AMX lowers the clock.
//
// A block has 2 x 2 result tiles: four products take four loads of operands. A
// product takes 16 cycles and a load 8. With three terms there are 16 loads for
// 24 products. The traffic of a block of 32 rows is K^T and V of the tile once.
// Its own scores and weights stay in the first-level cache.
//
// The plan chooses these products on AMX if there are more than a few rows:
// bf16 if inputs are bf16 or may be rounded, and three terms otherwise.
//
// The instructions are written as assembly. The intrinsics of GCC 12 take the
// tile number only as a literal, not as a template argument, and do not tell
// the compiler that they read memory.
#include "core/kernels/amx_bf16.h"

#if defined(__x86_64__) && defined(__linux__)

#include <asm/prctl.h>
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#define ATTND_INLINE inline __attribute__((always_inline))
#define ATTND_NOINLINE __attribute__((noinline))

namespace attnd {
namespace {

constexpr int64_t kTileRows = kAmxSteps;
constexpr int64_t kTileWords = kAmxSteps;  // words of a row
constexpr int64_t kStepsPerChunk = kKeysPerSum / 2;

// The numbers of the tile registers by use: results by row and column, operands
// on the left by row and on the right by column.
constexpr int kResult = 0;  // + 2 * row + column
constexpr int kLeft = 4;    // + row
constexpr int kRight = 6;   // + column

template <int kTile>
ATTND_INLINE void LoadTile(const float* from, int64_t stride_words) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
               :
               : "i"(kTile), "r"(from), "r"(stride_words * kWordBytes)
               : "memory");
}

template <int kTile>
ATTND_INLINE void StoreTile(float* to, int64_t stride_words) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)"
               :
               : "i"(kTile), "r"(to), "r"(stride_words * kWordBytes)
               : "memory");
}

template <int kTile>
ATTND_INLINE void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

template <int kRow, int kColumn>
ATTND_INLINE void Multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
               :
               : "i"(kResult + 2 * kRow + kColumn), "i"(kLeft + kRow),
                 "i"(kRight + kColumn));
}

// Up to 16 rows of an operand or a result. If there are fewer, they go through
// a buffer of a whole tile, because the memory after them belongs to something
// else.
template <class Word>
class Rows {
 public:
  Rows(Word* from, int64_t stride_words, int64_t rows)
      : first_(from), stride_(stride_words), count_(rows) {}

  template <int kTile>
  ATTND_INLINE void Load(int64_t word) const {
    if (count_ == kTileRows) {
      LoadTile<kTile>(first_ + word, stride_);
    } else {
      LoadFew<kTile>(word);
    }
  }

  template <int kTile>
  ATTND_INLINE void Store(int64_t word) const {
    if (count_ == kTileRows) {
      StoreTile<kTile>(first_ + word, stride_);
    } else {
      StoreFew<kTile>(word);
    }
  }

 private:
  template <int kTile>
  ATTND_NOINLINE void LoadFew(int64_t word) const {
    alignas(64) float whole[kTileRows * kTileWords] = {};
    for (int64_t r = 0; r < count_; ++r) {
      std::memcpy(whole + r * kTileWords, first_ + r * stride_ + word,
                  kTileWords * kWordBytes);
    }
    LoadTile<kTile>(whole, kTileWords);
  }

  template <int kTile>
  ATTND_NOINLINE void StoreFew(int64_t word) const {
    alignas(64) float whole[kTileRows * kTileWords];
    StoreTile<kTile>(whole, kTileWords);
    for (int64_t r = 0; r < count_; ++r) {
      std::memcpy(first_ + r * stride_ + word, whole + r * kTileWords,
                  kTileWords * kWordBytes);
    }
  }

  Word* first_;
  int64_t stride_;
  int64_t count_;
};

// The rows of a block, divided into two tiles. The second is empty in blocks of
// up to 16 rows.
template <class Word>
struct BlockRows {
  BlockRows(Word* from, int64_t stride, int64_t rows)
      : upper(from, stride, std::min(rows, kTileRows)),
        lower(from + kTileRows * stride, stride, rows - kTileRows) {}
  Rows<Word> upper;
  Rows<Word> lower;
};

// The left-hand side of a product. Load puts one of its terms into one or two
// tile registers, which keep it until the next Load.
template <bool kTwo>
class Left {
 public:
  Left(const BlockRows<const float>& rows, int64_t term_words)
      : rows_(rows), term_words_(term_words) {}

  ATTND_INLINE void Load(int64_t term, int64_t step) const {
    const int64_t word = term * term_words_ + step;
    rows_.upper.Load<kLeft>(word);
    if constexpr (kTwo) rows_.lower.Load<kLeft + 1>(word);
  }

 private:
  const BlockRows<const float>& rows_;
  int64_t term_words_;
};

template <bool kTwo>
ATTND_INLINE void LoadRight(const float* group, int64_t term) {
  constexpr int64_t kColumns = kTwo ? 2 : 1;
  const float* const tile = group + term * kColumns * kAmxTileWords;
  LoadTile<kRight>(tile, kTileWords);
  if constexpr (kTwo) LoadTile<kRight + 1>(tile + kAmxTileWords, kTileWords);
}

// Adds the product of the tiles loaded left and right to the results.
template <bool kTwoRows, bool kTwoColumns>
ATTND_INLINE void MultiplyLoaded() {
  Multiply<0, 0>();
  if constexpr (kTwoColumns) Multiply<0, 1>();
  if constexpr (kTwoRows) Multiply<1, 0>();
  if constexpr (kTwoRows && kTwoColumns) Multiply<1, 1>();
}

// Computes results += left * right for steps first <= step < last, with two
// tiles of rows if kTwoRows and two tiles of columns if kTwoColumns.
// `right(step)` returns where the tiles of kAmxSteps steps are.
//
// With three terms, the products of terms whose numbers add up to more than 2
// are left out. Terms are cut off, not rounded. So for 1 <= x < 2 the terms are
// x1 < 2^-7 and x2 < 2^-15, and what is left out is less than 2^-21 of x y: 2 *
// 2^-7 * 2^-15, and 0.7 * 2^-24 on average, with the sign of x y. Of the other
// six products the five small ones come first, over all steps, so that their
// rounding errors are of their own size. kTransposed takes them in the order of
// right * left, so that the result has the same bits.
template <int kTerms, bool kTwoRows, bool kTwoColumns, bool kTransposed,
          class Right>
ATTND_INLINE void MultiplySteps(const Left<kTwoRows>& left, int64_t first,
                                int64_t last, const Right& right) {
  if constexpr (kTerms == kBf16Terms) {
    for (int64_t step = first; step < last; step += kAmxSteps) {
      const float* const group = right(step);
      if constexpr (kTransposed) {
        LoadRight<kTwoColumns>(group, 0);
        left.Load(2, step);
        MultiplyLoaded<kTwoRows, kTwoColumns>();
        left.Load(1, step);
        MultiplyLoaded<kTwoRows, kTwoColumns>();
        LoadRight<kTwoColumns>(group, 1);
        MultiplyLoaded<kTwoRows, kTwoColumns>();
        left.Load(0, step);
        MultiplyLoaded<kTwoRows, kTwoColumns>();
        LoadRight<kTwoColumns>(group, 2);
        MultiplyLoaded<kTwoRows, kTwoColumns>();
        continue;
      }
      left.Load(0, step);
      LoadRight<kTwoColumns>(group, 2);
      MultiplyLoaded<kTwoRows, kTwoColumns>();
      LoadRight<kTwoColumns>(group, 1);
      MultiplyLoaded<kTwoRows, kTwoColumns>();
      left.Load(1, step);
      MultiplyLoaded<kTwoRows, kTwoColumns>();
      LoadRight<kTwoColumns>(group, 0);
      MultiplyLoaded<kTwoRows, kTwoColumns>();
      left.Load(2, step);
      MultiplyLoaded<kTwoRows, kTwoColumns>();
    }
  }
  for (int64_t step = first; step < last; step += kAmxSteps) {
    left.Load(0, step);
    LoadRight<kTwoColumns>(right(step), 0);
    MultiplyLoaded<kTwoRows, kTwoColumns>();
  }
}

// Calls `visit` with two constants: whether there are two tiles of rows, and
// two tiles of columns.
template <class Visitor>
ATTND_INLINE void VisitShape(int64_t rows, int64_t columns,
                             const Visitor& visit) {
  using No = std::false_type;
  using Yes = std::true_type;
  if (rows > kTileRows) {
    columns > 1 ? visit(Yes(), Yes()) : visit(Yes(), No());
  } else {
    columns > 1 ? visit(No(), Yes()) : visit(No(), No());
  }
}

template <bool kTwoRows, bool kTwoColumns>
ATTND_INLINE void ZeroResults() {
  ZeroTile<kResult>();
  if constexpr (kTwoColumns) ZeroTile<kResult + 1>();
  if constexpr (kTwoRows) ZeroTile<kResult + 2>();
  if constexpr (kTwoRows && kTwoColumns) ZeroTile<kResult + 3>();
}

template <bool kTwoRows, bool kTwoColumns>
ATTND_INLINE void LoadResults(const BlockRows<float>& results, int64_t column) {
  results.upper.Load<kResult>(column);
  if constexpr (kTwoColumns) {
    results.upper.Load<kResult + 1>(column + kTileWords);
  }
  if constexpr (kTwoRows) results.lower.Load<kResult + 2>(column);
  if constexpr (kTwoRows && kTwoColumns) {
    results.lower.Load<kResult + 3>(column + kTileWords);
  }
}

template <bool kTwoRows, bool kTwoColumns>
ATTND_INLINE void StoreResults(const BlockRows<float>& results,
                               int64_t column) {
  results.upper.Store<kResult>(column);
  if constexpr (kTwoColumns) {
    results.upper.Store<kResult + 1>(column + kTileWords);
  }
  if constexpr (kTwoRows) results.lower.Store<kResult + 2>(column);
  if constexpr (kTwoRows && kTwoColumns) {
    results.lower.Store<kResult + 3>(column + kTileWords);
  }
}

// Computes to[r][c] += from[r][c] for whole vectors of columns. `from` has no
// gaps. A machine with AMX has AVX-512, too.
__attribute__((target("avx512f"))) ATTND_NOINLINE void AddTo(
    int64_t rows, int64_t columns, const float* from, float* to,
    int64_t to_stride) {
  using Vector [[gnu::vector_size(64), gnu::may_alias]] = float;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += kTileWords) {
      *reinterpret_cast<Vector*>(to + r * to_stride + c) +=
          *reinterpret_cast<const Vector*>(from + r * columns + c);
    }
  }
}

// Returns the words of the right-hand side for kAmxSteps steps.
constexpr int64_t GroupWords(int64_t terms, int64_t columns) {
  return terms * columns * kAmxTileWords;
}

// Asks the operating system to save the tile registers of this process's
// threads. It does so only on request (Documentation/arch/x86/xstate.rst).
bool AskForTiles() {
#ifdef ARCH_REQ_XCOMP_PERM
  constexpr int kRequest = ARCH_REQ_XCOMP_PERM;
#else
  constexpr int kRequest = 0x1023;
#endif
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

bool ProcessorHasAmxBf16() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kBf16 = 1U << 22U;
  constexpr unsigned kTile = 1U << 24U;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBf16) != 0 &&
         (d & kTile) != 0;
}

// The configuration that LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

}  // namespace

bool HasAmxBf16() {
  static const bool has = ProcessorHasAmxBf16() && AskForTiles();
  return has;
}

AmxTiles::AmxTiles() {
  static constexpr TileConfig kConfig = [] {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = kTileWords * kWordBytes;
      config.rows[tile] = kTileRows;
    }
    return config;
  }();
  asm volatile("ldtilecfg %0" : : "m"(kConfig));
}

AmxTiles::~AmxTiles() { asm volatile("tilerelease"); }

namespace {

template <int kTerms, bool kTransposed>
void Scores(int64_t rows, int64_t columns, const AmxLeft& left,
            const float* right, int64_t steps, float* scores,
            int64_t score_stride) {
  const BlockRows<const float> left_rows(left.first, left.stride, rows);
  const BlockRows<float> results(scores, score_stride, rows);
  VisitShape(rows, columns, [&](auto two_rows, auto two_columns) {
    constexpr bool kTwoRows = decltype(two_rows)::value;
    constexpr bool kTwoColumns = decltype(two_columns)::value;
    ZeroResults<kTwoRows, kTwoColumns>();
    MultiplySteps<kTerms, kTwoRows, kTwoColumns, kTransposed>(
        Left<kTwoRows>(left_rows, left.term_words), 0, steps,
        [&](int64_t step) {
          return right + GroupWords(kTerms, columns) * (step / kAmxSteps);
        });
    StoreResults<kTwoRows, kTwoColumns>(results, 0);
  });
}

}  // namespace

template <int kTerms>
void AmxScores(int64_t rows, int64_t columns, const AmxLeft& q,
               const float* keys, int64_t steps, float* scores,
               int64_t score_stride) {
  Scores<kTerms, false>(rows, columns, q, keys, steps, scores, score_stride);
}

void AmxScoresTransposed(int64_t rows, int64_t columns, const AmxLeft& keys,
                         const float* q, int64_t steps, float* scores,
                         int64_t score_stride) {
  Scores<kBf16Terms, true>(rows, columns, keys, q, steps, scores, score_stride);
}

template <int kTerms>
void AmxAddValues(int64_t rows, int64_t columns, const AmxLeft& weights,
                  const float* values, int64_t chunk_words, int64_t first,
                  int64_t last, bool fresh, float* output,
                  int64_t output_stride) {
  const BlockRows<const float> weight_rows(weights.first, weights.stride, rows);
  const BlockRows<float> results(output, output_stride, rows);
  const auto right = [&](int64_t step) {
    return values + step / kStepsPerChunk * chunk_words +
           step % kStepsPerChunk / kAmxSteps * GroupWords(kTerms, columns);
  };
  VisitShape(rows, columns, [&](auto two_rows, auto two_columns) {
    constexpr bool kTwoRows = decltype(two_rows)::value;
    constexpr bool kTwoColumns = decltype(two_columns)::value;
    const Left<kTwoRows> left(weight_rows, weights.term_words);
    if (fresh || kTerms > 1) {
      ZeroResults<kTwoRows, kTwoColumns>();
    } else {
      LoadResults<kTwoRows, kTwoColumns>(results, 0);
    }
    MultiplySteps<kTerms, kTwoRows, kTwoColumns, false>(left, first, last,
                                                        right);
    if (fresh || kTerms == 1) {
      StoreResults<kTwoRows, kTwoColumns>(results, 0);
      return;
    }
    // The sums are made apart from the output, so that their rounding errors
    // are of their own size.
    alignas(64) float sums[4 * kAmxTileWords];
    constexpr int64_t kStride = (kTwoColumns ? 2 : 1) * kTileWords;
    constexpr int64_t kRows = (kTwoRows ? 2 : 1) * kTileRows;
    StoreResults<kTwoRows, kTwoColumns>(BlockRows<float>(sums, kStride, kRows),
                                        0);
    AddTo(rows, kStride, sums, output, output_stride);
  });
}

}  // namespace attnd

#else

namespace attnd {

bool HasAmxBf16() { return false; }
AmxTiles::AmxTiles() = default;
AmxTiles::~AmxTiles() = default;
template <int kTerms>
void AmxScores(int64_t, int64_t, const AmxLeft&, const float*, int64_t, float*,
               int64_t) {}
void AmxScoresTransposed(int64_t, int64_t, const AmxLeft&, const float*,
                         int64_t, float*, int64_t) {}
template <int kTerms>
void AmxAddValues(int64_t, int64_t, const AmxLeft&, const float*, int64_t,
                  int64_t, int64_t, bool, float*, int64_t) {}

}  // namespace attnd

#endif

namespace attnd {

template void AmxScores<1>(int64_t, int64_t, const AmxLeft&, const float*,
                           int64_t, float*, int64_t);
template void AmxScores<kBf16Terms>(int64_t, int64_t, const AmxLeft&,
                                    const float*, int64_t, float*, int64_t);
template void AmxAddValues<1>(int64_t, int64_t, const AmxLeft&, const float*,
                              int64_t, int64_t, int64_t, bool, float*, int64_t);
template void AmxAddValues<kBf16Terms>(int64_t, int64_t, const AmxLeft&,
                                       const float*, int64_t, int64_t, int64_t,
                                       bool, float*, int64_t);

}  // namespace attnd
