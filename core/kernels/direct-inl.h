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
// to the end of a page, and late if rows are short. With this distance memory
// stays busy while several query rows compute.
inline constexpr int64_t kAheadBytes = 4096;

template <class T>
HWY_INLINE void FetchAhead(const T* from, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + bytes, 0, 3);
}

// ---------------------------------------------------------------------------
// Keys

// Keys are read at this many places in turn, because on some processors a
// single stream of reads does not use all of the memory bandwidth. The keys of
// a call are divided into equal halves, one for each place. This choice depends
// only on the numbers of keys. Where a place lies in memory is up to the
// caller, so each place may lie in a page of its own.
inline constexpr size_t kPlaces = 2;

// The rows of K that belong to one place.
template <class As>
struct KeyPlace {
  RowReader<As> rows;
  // What to add to the address after the last row to get the address of the row
  // that this place reads next, in a later call. Only prefetches use it.
  int64_t gap_bytes = 0;
};
template <class As>
using KeyPlaces = std::array<KeyPlace<As>, kPlaces>;

// With up to this many query rows, two keys of each place are multiplied at
// once, and with more rows one. The sums must fit into as many registers as
// those of a microkernel.
inline constexpr size_t kRowsOfTwoKeys =
    std::min(kRows, kRows* kVectors / (2 * kPlaces));
constexpr size_t KeysOfPlace(size_t rows) {
  return rows <= kRowsOfTwoKeys ? 2 : 1;
}
// The most query rows that are multiplied with the same keys at once.
inline constexpr size_t kDirectRows =
    std::min(kRows, kRows* kVectors / kPlaces);

// Returns the most query rows of a group. If a tile needs several groups, each
// of them loads the keys again. For 16-bit keys, which must be converted each
// time, few groups are best. For f32, a small group that multiplies more keys
// at once is better.
template <class As>
constexpr int64_t RowsOfGroup(int64_t rows_of_tile) {
  constexpr bool kConverts = sizeof(typename As::Element) < sizeof(float);
  constexpr auto kMost = static_cast<int64_t>(kDirectRows);
  return kConverts || rows_of_tile <= kMost
             ? kMost
             : static_cast<int64_t>(kRowsOfTwoKeys);
}

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

// Computes the scores of R query rows with the keys begin <= j < end of each
// place: scores[r][j] for the first place, scores[r][half + j] for the second.
// The number of keys is even. For keys from counts[place] on it reads the
// place's last key again; their scores have no meaning. Rows of q are padded
// with zeros to whole SIMD vectors. If `prefetches`, prefetches the rows that
// come next, also those of the next call, which begin after key `half`.
template <class As, size_t R>
void DirectBlock(const float* HWY_RESTRICT q, int64_t q_stride,
                 const KeyPlaces<As>& places,
                 const std::array<int64_t, kPlaces>& counts, int64_t begin,
                 int64_t end, int64_t half, int64_t dims,
                 float* HWY_RESTRICT scores, int64_t score_stride,
                 bool prefetches) {
  using Element = typename As::Element;
  constexpr size_t kStep = KeysOfPlace(R);
  constexpr size_t kKeys = kPlaces * kStep;
  constexpr int64_t kLineElements =
      PrefetchCursor::kLineBytes / static_cast<int64_t>(sizeof(Element));
  // With one query row and a whole line in a vector, the loop does little but
  // load. If rows are long, the processor's own prefetching is faster (measured
  // on a Zen 5).
  if constexpr (R == 1 && kLanes >= kLineElements) {
    prefetches = prefetches && dims < 8 * kLineElements;
  }
  const As as = places[0].rows.as;
  const int64_t whole = dims / kLanes * kLanes;
  for (int64_t j = begin; j < end; j += int64_t{kStep}) {
    const Element* row[kKeys];
    int64_t ahead[kKeys] = {};
    Vec acc[R][kKeys];
    ATTND_UNROLL
    for (size_t i = 0; i < kKeys; ++i) {
      const size_t place = i / kStep;
      const KeyPlace<As>& from = places[place];
      const int64_t at = j + static_cast<int64_t>(i % kStep);
      row[i] = from.rows.At(std::min(at, counts[place] - 1), 0);
      ATTND_UNROLL
      for (size_t r = 0; r < R; ++r) acc[r][i] = hn::Zero(kF);
      if (!prefetches) continue;
      const int64_t left_bytes = (half - at) * from.rows.stride *
                                 static_cast<int64_t>(sizeof(Element));
      ahead[i] = kAheadBytes + (left_bytes <= kAheadBytes ? from.gap_bytes : 0);
    }
    for (int64_t d = 0; d < whole; d += kLanes) {
      // One prefetch for each line is enough.
      if (prefetches && d % kLineElements == 0) {
        ATTND_UNROLL
        for (size_t i = 0; i < kKeys; ++i) FetchAhead(row[i] + d, ahead[i]);
      }
      Vec k[kKeys];
      ATTND_UNROLL
      for (size_t i = 0; i < kKeys; ++i) k[i] = as.Load(kF, row[i] + d);
      ATTND_UNROLL
      for (size_t r = 0; r < R; ++r) {
        const Vec x = hn::Load(kF, q + static_cast<int64_t>(r) * q_stride + d);
        ATTND_UNROLL
        for (size_t i = 0; i < kKeys; ++i) {
          acc[r][i] = hn::MulAdd(x, k[i], acc[r][i]);
        }
      }
    }
    if (whole < dims) {
      ATTND_UNROLL
      for (size_t i = 0; i < kKeys; ++i) {
        const Vec k = LoadFirst(as, kF, row[i] + whole,
                                static_cast<size_t>(dims - whole));
        ATTND_UNROLL
        for (size_t r = 0; r < R; ++r) {
          const Vec x =
              hn::Load(kF, q + static_cast<int64_t>(r) * q_stride + whole);
          acc[r][i] = hn::MulAdd(x, k, acc[r][i]);
        }
      }
    }
    float* const to = scores + j;
    if constexpr (kStep == 2) {
      ATTND_UNROLL
      for (size_t r = 0; r < R; ++r) {
        float* const low = to + static_cast<int64_t>(r) * score_stride;
        StoreSums(acc[r][0], acc[r][1], acc[r][2], acc[r][3], low, low + half);
      }
    } else {
      // Two rows at once. If their number is odd, the last one comes twice.
      ATTND_UNROLL
      for (size_t r = 0; r < R; r += 2) {
        const size_t other = std::min(r + 1, R - 1);
        float low[2];
        float high[2];
        StoreSums(acc[r][0], acc[r][1], acc[other][0], acc[other][1], low,
                  high);
        float* const first = to + static_cast<int64_t>(r) * score_stride;
        float* const second = to + static_cast<int64_t>(other) * score_stride;
        first[0] = low[0];
        first[half] = low[1];
        second[0] = high[0];
        second[half] = high[1];
      }
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

// Returns the number of keys of a place, if a call has `count` keys.
constexpr int64_t HalfOfKeys(int64_t count) {
  return CeilDiv(count, int64_t{2 * kPlaces}) * 2;
}

// Computes the scores of the first `count` keys, rounded up to a multiple of
// four. All groups of query rows take turns at each four keys. If one group
// went over all keys first, it would wait for memory, and memory would be idle
// while all later groups read the keys from the cache.
template <class As>
void DirectScores(std::span<const DirectRows> groups, int64_t q_stride,
                  const KeyPlaces<As>& places, int64_t count, int64_t dims,
                  int64_t score_stride) {
  static constexpr auto kBlocks =
      MakeDirectBlocks<As>(std::make_index_sequence<kDirectRows>());
  const int64_t half = HalfOfKeys(count);
  const std::array counts = {std::min(half, count),
                             std::max<int64_t>(count - half, 1)};
  const int64_t step = groups.size() == 1 ? half : 2;
  for (int64_t j = 0; j < half; j += step) {
    bool prefetches = true;
    for (const DirectRows& group : groups) {
      kBlocks[static_cast<size_t>(group.rows - 1)](
          group.q, q_stride, places, counts, j, j + step, half, dims,
          group.scores, score_stride, prefetches);
      prefetches = false;
    }
  }
}

// Computes the scores of every block of a tile that sees any key, for all keys
// that any block sees. `q` and `scores` are those of the tile's first row.
// `begin` is the number of the first key of the current tile of keys, and
// `keys_at(key)` returns the rows from that key of the batch entry on. They
// have at least half of the keys of a tile. There are no keys from `all_keys`
// on.
template <class As, class KeysAt>
void DirectTileScores(const RowTile& rows, int64_t begin, int64_t all_keys,
                      const float* q, int64_t q_stride, const KeysAt& keys_at,
                      int64_t dims, float* scores, int64_t score_stride) {
  KeyRange seen;
  DirectRows groups[kMaxTileRows];
  size_t num_groups = 0;
  const int64_t most = RowsOfGroup<As>(rows.rows());
  for (int64_t b = 0; b < rows.num_blocks(); ++b) {
    const Block& block = rows.block(b);
    if (block.seen.size() == 0) continue;
    seen = Union(seen, block.seen);
    for (int64_t r = 0; r < block.rows; r += most) {
      const int64_t row = block.first + r;
      groups[num_groups++] = {.q = q + row * q_stride,
                              .scores = scores + row * score_stride,
                              .rows = std::min(block.rows - r, most)};
    }
  }
  const int64_t first = rows.FirstVector(seen);
  for (size_t g = 0; g < num_groups; ++g) groups[g].scores += first;
  const int64_t count = seen.end - begin - first;
  const int64_t half = HalfOfKeys(count);
  KeyPlaces<As> places;
  for (size_t i = 0; i < kPlaces; ++i) {
    // If there is one key or two, both places have the same.
    const int64_t key =
        begin + first + std::min(static_cast<int64_t>(i) * half, count - 1);
    const int64_t next = key + int64_t{kPlaces} * half;
    const RowReader<As> here = keys_at(key);
    places[i] = {here,
                 next >= all_keys
                     ? 0
                     : reinterpret_cast<const char*>(keys_at(next).At(0, 0)) -
                           reinterpret_cast<const char*>(here.At(half, 0))};
  }
  DirectScores<As>({groups, num_groups}, q_stride, places, count, dims,
                   score_stride);
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

// Computes output[r][column] += sum over `keys` keys of weights[r][key] *
// value[key][column], for R query rows and N SIMD vectors of columns.
template <class As, size_t R, size_t N>
void DirectValueBlock(const float* HWY_RESTRICT weights, int64_t weight_stride,
                      RowReader<As> values, int64_t keys,
                      float* HWY_RESTRICT output, int64_t output_stride,
                      RowsAhead ahead) {
  constexpr int64_t kLine = PrefetchCursor::kLineBytes;
  using Element = typename As::Element;
  const Element* HWY_RESTRICT value = values.first;
  const int64_t stream_bytes = ahead.row == nullptr ? ahead.bytes : 0;
  int64_t fetch_at = ahead.row == nullptr ? keys : 0;
  Vec acc[R][N];
  ATTND_UNROLL
  for (auto& row : acc) {
    ATTND_UNROLL
    for (Vec& x : row) x = hn::Zero(kF);
  }
  for (int64_t j = 0; j < keys; ++j) {
    if (j == fetch_at) {
      for (int64_t b = 0; b < ahead.bytes; b += kLine) {
        __builtin_prefetch(ahead.row + b, 0, 2);
      }
      ahead.row += values.stride * static_cast<int64_t>(sizeof(Element));
      fetch_at += ahead.keys_a_row;
    }
    for (int64_t b = 0; b < stream_bytes; b += kLine) {
      FetchAhead(value, kAheadBytes + b);
    }
    Vec v[N];
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      v[n] = values.as.Load(kF, value + n * kLaneCount);
    }
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const Vec p =
          hn::Set(kF, weights[static_cast<int64_t>(r) * weight_stride + j]);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) {
        acc[r][n] = hn::MulAdd(p, v[n], acc[r][n]);
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
      hn::Store(hn::Add(hn::Load(kF, to), acc[r][n]), kF, to);
    }
  }
}

// Pointers to DirectValueBlock for R rows. The index is the number of SIMD
// vectors of columns, minus 1.
template <class As>
using DirectValueRow =
    std::array<decltype(&DirectValueBlock<As, 1, 1>), DirectVectors(1)>;

template <class As, size_t R, size_t... N>
constexpr DirectValueRow<As> MakeDirectValueRow(
    std::index_sequence<N...> /*vectors*/) {
  return {&DirectValueBlock<As, R, N + 1>...};
}

// Returns all pointers. The index is the number of rows, minus 1.
template <class As, size_t... R>
constexpr std::array<DirectValueRow<As>, sizeof...(R)> MakeDirectValueTable(
    std::index_sequence<R...> /*rows*/) {
  return {MakeDirectValueRow<As, R + 1>(
      std::make_index_sequence<DirectVectors(R + 1)>())...};
}

// Adds the weighted values of the keys first <= key < last to `output`, for any
// number of columns. Each sum has kKeysPerSum keys, counted from key 0, the
// first row of `values`.
template <class As>
void DirectValues(const float* weights, int64_t weight_stride,
                  RowReader<As> values, int64_t first, int64_t last,
                  int64_t dims, int64_t rows, float* output,
                  int64_t output_stride, const RowsAhead& ahead) {
  static constexpr auto kTable =
      MakeDirectValueTable<As>(std::make_index_sequence<kRows>());
  const auto row = static_cast<size_t>(rows - 1);
  while (first < last) {
    const int64_t keys =
        std::min(RoundUp(first + 1, kKeysPerSum), last) - first;
    VisitColumns(dims, static_cast<int64_t>(DirectVectors(row + 1)),
                 [&](int64_t column, int64_t vectors) {
                   kTable[row][static_cast<size_t>(vectors - 1)](
                       weights + first, weight_stride,
                       values.From(first, column), keys, output + column,
                       output_stride, column == 0 ? ahead : RowsAhead());
                 });
    first += keys;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
