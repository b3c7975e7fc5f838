// Multiplies a few query rows with keys and values of any type. Reads K and V
// where they lie, without packing them, and each row of them only once.
#if defined(ATTND_CORE_KERNELS_DIRECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_DIRECT_INL_H_
#undef ATTND_CORE_KERNELS_DIRECT_INL_H_
#else
#define ATTND_CORE_KERNELS_DIRECT_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/checked_math.h"
#include "core/geometry.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/microkernels.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// How many bytes ahead of the current row of K, or of V, memory is prefetched
// into the first-level cache. The processor prefetches by itself, too, but only
// to the end of a page, and late if rows are short. With these distances memory
// stays busy while several query rows compute. Where registers allow it, the
// code below reads K, or V, at two places in turn, because a single stream of
// reads reached only 0.88 of the memory bandwidth that two streams reached.
inline constexpr int64_t kKeyAheadBytes = 4096;
inline constexpr int64_t kValueAheadBytes = 2560;

template <class T>
HWY_INLINE void FetchAhead(const T* from, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + bytes, 0, 3);
}

// ---------------------------------------------------------------------------
// Keys

// How many keys are multiplied at once: two neighbours in the first half of the
// keys, and two at the same place in the second half.
inline constexpr int64_t kDirectKeys = 4;
// The most query rows that are multiplied with these keys at once. Together
// they need as many registers for sums as a microkernel.
inline constexpr size_t kDirectRows = kRows * kVectors / kDirectKeys;

#if ATTND_WIDE
// Splits a vector into blocks of four floats and returns the sum of the blocks.
template <class D>
HWY_INLINE auto SumOfBlocks(D d, hn::Vec<D> x) {
  if constexpr (hn::MaxLanes(d) == 4) {
    return x;
  } else {
    const hn::Half<D> half;
    return SumOfBlocks(half,
                       hn::Add(hn::LowerHalf(half, x), hn::UpperHalf(half, x)));
  }
}
#endif

// Adds up the lanes of each of four vectors. Stores the sums of a and b at
// `low`, and those of c and e at `high`.
HWY_INLINE void StoreSums(Vec a, Vec b, Vec c, Vec e, float* HWY_RESTRICT low,
                          float* HWY_RESTRICT high) {
#if !ATTND_WIDE
  low[0] = hn::GetLane(a);
  low[1] = hn::GetLane(b);
  high[0] = hn::GetLane(c);
  high[1] = hn::GetLane(e);
#else
  const hn::Repartition<double, Floats> d2;
  const auto ab = hn::BitCast(d2, hn::Add(hn::InterleaveLower(kF, a, b),
                                          hn::InterleaveUpper(kF, a, b)));
  const auto ce = hn::BitCast(d2, hn::Add(hn::InterleaveLower(kF, c, e),
                                          hn::InterleaveUpper(kF, c, e)));
  // Now every block of four floats has one partial sum of each of a, b, c and
  // e.
  const auto blocks = hn::Add(hn::BitCast(kF, hn::InterleaveLower(d2, ab, ce)),
                              hn::BitCast(kF, hn::InterleaveUpper(d2, ab, ce)));
  const auto sums = SumOfBlocks(kF, blocks);
  const hn::FixedTag<float, 2> f2;
  hn::StoreU(hn::LowerHalf(f2, sums), f2, low);
  hn::StoreU(hn::UpperHalf(f2, sums), f2, high);
#endif
}

// Computes scores[r][j] = dot(q[r], key j) for R query rows and the keys begin
// <= j < end and begin + half <= j < end + half, four keys at a time. For keys
// after `last_key` it reads the last key again; their scores have no meaning.
// Rows of q are padded with zeros to whole SIMD vectors.
template <class As, size_t R>
void DirectBlock(const float* HWY_RESTRICT q, int64_t q_stride,
                 RowReader<As> keys, int64_t last_key, int64_t begin,
                 int64_t end, int64_t half, int64_t dims,
                 float* HWY_RESTRICT scores, int64_t score_stride,
                 int64_t ahead_bytes) {
  const int64_t whole = dims / kLanes * kLanes;
  for (int64_t j = begin; j < end; j += kDirectKeys / 2) {
    const typename As::Element* row[kDirectKeys];
    Vec acc[R][kDirectKeys];
    ATTND_UNROLL
    for (int64_t i = 0; i < kDirectKeys; ++i) {
      const int64_t at = j + i % 2 + i / 2 * half;
      row[i] = keys.At(std::min(at, last_key), 0);
      ATTND_UNROLL
      for (size_t r = 0; r < R; ++r) acc[r][i] = hn::Zero(kF);
    }
    for (int64_t d = 0; d < whole; d += kLanes) {
      Vec k[kDirectKeys];
      ATTND_UNROLL
      for (int64_t i = 0; i < kDirectKeys; ++i) {
        FetchAhead(row[i] + d, ahead_bytes);
        k[i] = keys.as.Load(kF, row[i] + d);
      }
      ATTND_UNROLL
      for (size_t r = 0; r < R; ++r) {
        const Vec x = hn::Load(kF, q + static_cast<int64_t>(r) * q_stride + d);
        ATTND_UNROLL
        for (int64_t i = 0; i < kDirectKeys; ++i) {
          acc[r][i] = hn::MulAdd(x, k[i], acc[r][i]);
        }
      }
    }
    if (whole < dims) {
      ATTND_UNROLL
      for (int64_t i = 0; i < kDirectKeys; ++i) {
        const Vec k = LoadFirst(keys.as, kF, row[i] + whole,
                                static_cast<size_t>(dims - whole));
        ATTND_UNROLL
        for (size_t r = 0; r < R; ++r) {
          const Vec x =
              hn::Load(kF, q + static_cast<int64_t>(r) * q_stride + whole);
          acc[r][i] = hn::MulAdd(x, k, acc[r][i]);
        }
      }
    }
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      float* const to = scores + static_cast<int64_t>(r) * score_stride + j;
      StoreSums(acc[r][0], acc[r][1], acc[r][2], acc[r][3], to, to + half);
    }
  }
}

template <class As, size_t... R>
constexpr auto MakeDirectBlocks(std::index_sequence<R...> /*rows*/) {
  return std::array{&DirectBlock<As, R + 1>...};
}

// A group of query rows that DirectBlock multiplies with the same keys at once.
struct DirectRows {
  const float* q;
  float* scores;
  int64_t rows;  // up to kDirectRows
};

// Computes the scores of the first `count` keys, rounded up to a multiple of
// four. All groups of query rows take turns at each four keys. If one group
// went over all keys first, it would wait for memory, and memory would be idle
// while all later groups read the keys from the cache.
template <class As>
void DirectScores(std::span<const DirectRows> groups, int64_t q_stride,
                  RowReader<As> keys, int64_t count, int64_t dims,
                  int64_t score_stride) {
  static constexpr auto kBlocks =
      MakeDirectBlocks<As>(std::make_index_sequence<kDirectRows>());
  const int64_t half = CeilDiv(count, kDirectKeys) * (kDirectKeys / 2);
  const int64_t step = groups.size() == 1 ? half : kDirectKeys / 2;
  for (int64_t j = 0; j < half; j += step) {
    int64_t ahead_bytes = kKeyAheadBytes;
    for (const DirectRows& group : groups) {
      kBlocks[static_cast<size_t>(group.rows - 1)](
          group.q, q_stride, keys, count - 1, j, j + step, half, dims,
          group.scores, score_stride, ahead_bytes);
      ahead_bytes = 0;
    }
  }
}

// Computes the scores of every block of a tile that sees any key, for all keys
// that any block sees. `q` and `scores` are those of the tile's first row.
// `keys` begins with key number `begin`, the first of the current tile of keys.
template <class As>
void DirectTileScores(const RowTile& rows, int64_t begin, const float* q,
                      int64_t q_stride, RowReader<As> keys, int64_t dims,
                      float* scores, int64_t score_stride) {
  KeyRange seen;
  DirectRows groups[kMaxTileRows];
  size_t num_groups = 0;
  for (int64_t b = 0; b < rows.num_blocks(); ++b) {
    const Block& block = rows.block(b);
    if (block.seen.size() == 0) continue;
    seen = Union(seen, block.seen);
    constexpr auto kMax = static_cast<int64_t>(kDirectRows);
    for (int64_t r = 0; r < block.rows; r += kMax) {
      const int64_t row = block.first + r;
      groups[num_groups++] = {.q = q + row * q_stride,
                              .scores = scores + row * score_stride,
                              .rows = std::min(block.rows - r, kMax)};
    }
  }
  const int64_t first = rows.FirstVector(seen);
  for (size_t g = 0; g < num_groups; ++g) groups[g].scores += first;
  DirectScores({groups, num_groups}, q_stride, keys.From(first, 0),
               seen.end - begin - first, dims, score_stride);
}

// ---------------------------------------------------------------------------
// Values

// With at most this many query rows, multiplying weights with V waits for
// memory more than for arithmetic.
inline constexpr int64_t kStreamRows = 4;

// Returns how many SIMD vectors of columns of V are multiplied in one pass over
// the keys, for `rows` query rows. Few rows, which wait for memory, take more
// vectors, even if some of their sums then do not fit into registers. A second
// pass over the same rows of V would leave memory idle.
constexpr size_t DirectVectors(size_t rows) {
  return rows > kStreamRows
             ? kVectors
             : std::max(kVectors,
                        std::min<size_t>(8, kGeometry.stream_sums / rows));
}

// What a pass over V prefetches: whole rows of `bytes` bytes. If it prefetched
// only the columns that it reads, memory would deliver just a part of each row,
// which reaches only 0.6 of the speed.
struct RowsAhead {
  // Prefetches the rows of V that this pass reads next into the first-level
  // cache.
  static RowsAhead Stream(int64_t bytes) { return {.bytes = bytes}; }
  // Prefetches rows of V from `row` on into the second-level cache, for a later
  // pass: one row whenever this pass has multiplied `keys_a_row` keys.
  static RowsAhead Slowly(const void* row, int64_t bytes, int64_t keys_a_row) {
    return {static_cast<const char*>(row), bytes, keys_a_row};
  }

  const char* row = nullptr;
  int64_t bytes = 0;
  int64_t keys_a_row = 0;
};

// Computes output[r][column] += sum over keys of weights[r][key] *
// value[key][column], for R query rows and N SIMD vectors of columns. Makes S
// sums at the same time, each over `keys` keys. The keys of each sum begin
// kKeysPerSum keys after those of the sum before it.
template <class As, size_t S, size_t R, size_t N>
void DirectValueBlock(const float* HWY_RESTRICT weights, int64_t weight_stride,
                      RowReader<As> values, int64_t keys,
                      float* HWY_RESTRICT output, int64_t output_stride,
                      RowsAhead ahead) {
  constexpr int64_t kLine = PrefetchCursor::kLineBytes;
  using Element = typename As::Element;
  const Element* HWY_RESTRICT value = values.first;
  const int64_t stream_bytes = ahead.row == nullptr ? ahead.bytes : 0;
  int64_t fetch_at = ahead.row == nullptr ? keys : 0;
  Vec acc[S][R][N];
  ATTND_UNROLL
  for (auto& sum : acc) {
    ATTND_UNROLL
    for (auto& row : sum) {
      ATTND_UNROLL
      for (Vec& x : row) x = hn::Zero(kF);
    }
  }
  for (int64_t j = 0; j < keys; ++j) {
    if (j == fetch_at) {
      for (int64_t b = 0; b < ahead.bytes; b += kLine) {
        __builtin_prefetch(ahead.row + b, 0, 2);
      }
      ahead.row += values.stride * static_cast<int64_t>(sizeof(Element));
      fetch_at += ahead.keys_a_row;
    }
    ATTND_UNROLL
    for (size_t s = 0; s < S; ++s) {
      const int64_t key = static_cast<int64_t>(s) * kKeysPerSum;
      const Element* row = value + key * values.stride;
      for (int64_t b = 0; b < stream_bytes; b += kLine) {
        FetchAhead(row, kValueAheadBytes + b);
      }
      Vec v[N];
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) {
        v[n] = values.as.Load(kF, row + n * kLaneCount);
      }
      ATTND_UNROLL
      for (size_t r = 0; r < R; ++r) {
        const Vec p = hn::Set(
            kF, weights[static_cast<int64_t>(r) * weight_stride + key + j]);
        ATTND_UNROLL
        for (size_t n = 0; n < N; ++n) {
          acc[s][r][n] = hn::MulAdd(p, v[n], acc[s][r][n]);
        }
      }
    }
    value += values.stride;
  }
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    float* out = output + static_cast<int64_t>(r) * output_stride;
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      float* to = out + n * kLaneCount;
      Vec total = hn::Load(kF, to);
      ATTND_UNROLL
      for (size_t s = 0; s < S; ++s) total = hn::Add(total, acc[s][r][n]);
      hn::Store(total, kF, to);
    }
  }
}

// Pointers to DirectValueBlock for S sums and R rows. The index is the number
// of SIMD vectors of columns, minus 1.
template <class As>
using DirectValueRow =
    std::array<decltype(&DirectValueBlock<As, 1, 1, 1>), DirectVectors(1)>;

template <class As, size_t S, size_t R, size_t... N>
constexpr DirectValueRow<As> MakeDirectValueRow(
    std::index_sequence<N...> /*vectors*/) {
  return {&DirectValueBlock<As, S, R, N + 1>...};
}

// Returns the pointers for S sums. The index is the number of rows, minus 1.
template <class As, size_t S, size_t... R>
constexpr std::array<DirectValueRow<As>, sizeof...(R)> MakeDirectValueTable(
    std::index_sequence<R...> /*rows*/) {
  return {MakeDirectValueRow<As, S, R + 1>(
      std::make_index_sequence<DirectVectors(S * (R + 1))>())...};
}

// Adds the weighted values of the keys first <= key < last to `output`, for any
// number of columns. Each sum has kKeysPerSum keys, counted from key 0, the
// first row of `values`.
template <class As>
void DirectValues(const float* weights, int64_t weight_stride,
                  RowReader<As> values, int64_t first, int64_t last,
                  int64_t dims, int64_t rows, float* output,
                  int64_t output_stride, const RowsAhead& ahead) {
  static constexpr auto kOne =
      MakeDirectValueTable<As, 1>(std::make_index_sequence<kRows>());
  static constexpr auto kTwo =
      MakeDirectValueTable<As, 2>(std::make_index_sequence<1>());
  while (first < last) {
    const int64_t keys =
        std::min(RoundUp(first + 1, kKeysPerSum), last) - first;
    const bool two =
        rows == 1 && keys == kKeysPerSum && first + 2 * keys <= last;
    const size_t row = two ? 0 : static_cast<size_t>(rows - 1);
    const DirectValueRow<As>& blocks = two ? kTwo[row] : kOne[row];
    const size_t most = DirectVectors(two ? 2 : row + 1);
    VisitColumns(dims, static_cast<int64_t>(most),
                 [&](int64_t column, int64_t vectors) {
                   blocks[static_cast<size_t>(vectors - 1)](
                       weights + first, weight_stride,
                       values.From(first, column), keys, output + column,
                       output_stride, column == 0 ? ahead : RowsAhead());
                 });
    first += two ? 2 * keys : keys;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
