// Maths: the two matrix products of core/kernels/flash_attention.cc, S = Q K^T
// and O += P V, of bf16 operands with f32 sums. TDPBF16PS adds 16 pairs at a
// time, even and odd ones apart, so a sum's bits depend on where its groups of
// 32 dimensions or keys begin: always at multiples of 32 from the tile's first.
//
// Blocks of 2 x 2 result tiles: four loads of operands for four products, each
// product 16 cycles and each load 8. Traffic of a block of 32 rows: its part of
// K^T or V once, in pieces that stay in the first-level cache for all blocks of
// a tile.
//
// The instructions are written out: GCC 12's own have no name for a tile that
// templates could count, and do not say that they read memory.
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

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileWords = 16;  // of a row
constexpr int64_t kWordBytes = 4;
constexpr int64_t kPanelKeys = GeometryOf(Isa::kAmxBf16).panel_keys();
constexpr int64_t kStepsPerChunk = kKeysPerSum / 2;

// Tiles by their use: results by row and column, operands left and right.
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

// Up to 16 rows of an operand or a result. Fewer go through a whole tile of
// their own: what lies behind them is not theirs.
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

// The rows of a block by tiles; the second is empty in blocks of up to 16.
template <class Word>
struct BlockRows {
  BlockRows(Word* from, int64_t stride, int64_t rows)
      : upper(from, stride, std::min(rows, kTileRows)),
        lower(from + kTileRows * stride, stride, rows - kTileRows) {}
  Rows<Word> upper;
  Rows<Word> lower;
};

// results += left * right for steps first <= step < last, by `kTwoRows` and
// `kTwoColumns` tiles. `right(step)` is where the first column's rows begin,
// `right_stride` words apart; the second column follows.
template <bool kTwoRows, bool kTwoColumns, class Right>
ATTND_INLINE void MultiplySteps(const BlockRows<const float>& left,
                                int64_t first, int64_t last, const Right& right,
                                int64_t right_stride) {
  for (int64_t step = first; step < last; step += kAmxSteps) {
    const float* const from = right(step);
    LoadTile<kRight>(from, right_stride);
    left.upper.Load<kLeft>(step);
    Multiply<0, 0>();
    if constexpr (kTwoColumns) {
      LoadTile<kRight + 1>(from + kTileWords, right_stride);
      Multiply<0, 1>();
    }
    if constexpr (kTwoRows) {
      left.lower.Load<kLeft + 1>(step);
      Multiply<1, 0>();
      if constexpr (kTwoColumns) Multiply<1, 1>();
    }
  }
}

// Calls `visit` with whether there are two, as constants.
template <class Visitor>
ATTND_INLINE void VisitShape(bool two_rows, bool two_columns,
                             const Visitor& visit) {
  using No = std::false_type;
  using Yes = std::true_type;
  if (two_rows) {
    two_columns ? visit(Yes(), Yes()) : visit(Yes(), No());
  } else {
    two_columns ? visit(No(), Yes()) : visit(No(), No());
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

// The kernel keeps the tiles of a thread for it only where the process has
// asked for that (Documentation/arch/x86/xstate.rst).
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

// What LDTILECFG reads.
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

void AmxScores(int64_t rows, int64_t vectors, const float* q, int64_t q_stride,
               const float* panel, int64_t steps, float* scores,
               int64_t score_stride) {
  const BlockRows<const float> left(q, q_stride, rows);
  const BlockRows<float> results(scores, score_stride, rows);
  for (int64_t v = 0; v < vectors; v += 2) {
    const int64_t column = v * kTileWords;
    VisitShape(
        rows > kTileRows, v + 1 < vectors,
        [&](auto two_rows, auto two_columns) {
          constexpr bool kTwoRows = decltype(two_rows)::value;
          constexpr bool kTwoColumns = decltype(two_columns)::value;
          ZeroResults<kTwoRows, kTwoColumns>();
          MultiplySteps<kTwoRows, kTwoColumns>(
              left, 0, steps,
              [&](int64_t step) { return panel + step * kPanelKeys + column; },
              kPanelKeys);
          StoreResults<kTwoRows, kTwoColumns>(results, column);
        });
  }
}

void AmxAddValues(int64_t rows, int64_t vectors, const float* weights,
                  int64_t weight_stride, const AmxValues& values, int64_t first,
                  int64_t last, float* output, int64_t output_stride) {
  const BlockRows<const float> left(weights, weight_stride, rows);
  const BlockRows<float> results(output, output_stride, rows);
  for (int64_t v = 0; v < vectors; v += 2) {
    const int64_t column = v * kTileWords;
    VisitShape(rows > kTileRows, v + 1 < vectors,
               [&](auto two_rows, auto two_columns) {
                 constexpr bool kTwoRows = decltype(two_rows)::value;
                 constexpr bool kTwoColumns = decltype(two_columns)::value;
                 LoadResults<kTwoRows, kTwoColumns>(results, column);
                 MultiplySteps<kTwoRows, kTwoColumns>(
                     left, first, last,
                     [&](int64_t step) {
                       return values.first +
                              step / kStepsPerChunk * values.chunk_words +
                              step % kStepsPerChunk * values.row_words + column;
                     },
                     values.row_words);
                 StoreResults<kTwoRows, kTwoColumns>(results, column);
               });
  }
}

}  // namespace attnd

#else

namespace attnd {

bool HasAmxBf16() { return false; }
AmxTiles::AmxTiles() = default;
AmxTiles::~AmxTiles() = default;
void AmxScores(int64_t, int64_t, const float*, int64_t, const float*, int64_t,
               float*, int64_t) {}
void AmxAddValues(int64_t, int64_t, const float*, int64_t, const AmxValues&,
                  int64_t, int64_t, float*, int64_t) {}

}  // namespace attnd

#endif
