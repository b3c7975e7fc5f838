// The f32 microkernels of one target, and dot products with keys as they lie.
// For inclusion by kernels only, once a target.
#if defined(ATTND_CORE_KERNELS_MICROKERNELS_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_MICROKERNELS_INL_H_
#undef ATTND_CORE_KERNELS_MICROKERNELS_INL_H_
#else
#define ATTND_CORE_KERNELS_MICROKERNELS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/kernels/convert-inl.h"
#include "core/kernels/microkernels.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// Steps between updates of counters and addresses: these run on the ports of
// multiply-adds, of which a core that starts two a cycle has none to spare.
inline constexpr int kUnroll = 4;

// A ScoreBlockFn.
template <size_t R, size_t N>
void ScoreBlock(const float* q, int64_t q_stride,
                const float* HWY_RESTRICT panel, int64_t steps,
                float* HWY_RESTRICT scores, int64_t score_stride,
                float* HWY_RESTRICT row_max, Ahead ahead) {
  Vec acc[R][N];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) acc[r][n] = hn::Zero(kF);
  }
  const float* row[R];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    row[r] = q + static_cast<int64_t>(r) * q_stride;
  }
  int64_t d = 0;
  const auto step = [&](int64_t i) HWY_ATTR {
    Vec k[N];
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      k[n] = hn::Load(kF, panel + i * kPanelKeys + n * kLaneCount);
    }
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const Vec x = hn::Set(kF, row[r][d + i]);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) {
        acc[r][n] = hn::MulAdd(x, k[n], acc[r][n]);
      }
    }
  };
  for (; d + kUnroll <= steps; d += kUnroll) {
    ahead.Next<kUnroll>();
    ATTND_UNROLL
    for (int64_t i = 0; i < kUnroll; ++i) step(i);
    panel += kUnroll * kPanelKeys;
  }
  for (; d < steps; ++d) {
    step(0);
    panel += kPanelKeys;
  }
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    float* out = scores + static_cast<int64_t>(r) * score_stride;
    float* lanes = row_max + r * kLaneCount;
    Vec max = hn::Load(kF, lanes);
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      hn::Store(acc[r][n], kF, out + n * kLaneCount);
      max = hn::Max(max, acc[r][n]);
    }
    hn::Store(max, kF, lanes);
  }
}

// Where a ValueBlockFn's values and weights lie.
enum class ValueWay { kPacked, kTransposed, kInPlace };

// A ValueBlockFn.
template <class As, ValueWay kWay, size_t R, size_t N>
void ValueBlock(const float* HWY_RESTRICT weights, int64_t weight_stride,
                const void* HWY_RESTRICT values, int64_t value_stride,
                int64_t steps, float* HWY_RESTRICT output,
                int64_t output_stride, Ahead ahead) {
  const auto* HWY_RESTRICT value =
      static_cast<const typename As::Element*>(values);
  Vec acc[R][N];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) acc[r][n] = hn::Zero(kF);
  }
  const float* row[R];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    row[r] = weights + static_cast<int64_t>(r) * weight_stride;
  }
  const auto weight = [&](size_t r, int64_t step) HWY_ATTR {
    return hn::Set(kF,
                   kWay == ValueWay::kTransposed
                       ? weights[step * weight_stride + static_cast<int64_t>(r)]
                       : row[r][step]);
  };
  int64_t j = 0;
  if constexpr (kWay != ValueWay::kInPlace) {
    value_stride = static_cast<int64_t>(N) * kLanes;
  }
  const auto step = [&](int64_t i) HWY_ATTR {
    Vec v[N];
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      v[n] = As::Load(kF, value + i * value_stride + n * kLaneCount);
    }
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const Vec p = weight(r, j + i);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) acc[r][n] = hn::MulAdd(p, v[n], acc[r][n]);
    }
  };
  for (; j + kUnroll <= steps; j += kUnroll) {
    if constexpr (kWay != ValueWay::kInPlace) ahead.Next<kUnroll>();
    ATTND_UNROLL
    for (int64_t i = 0; i < kUnroll; ++i) {
      if constexpr (kWay == ValueWay::kInPlace) ahead.NextRow();
      step(i);
    }
    value += kUnroll * value_stride;
  }
  for (; j < steps; ++j) {
    step(0);
    value += value_stride;
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

template <size_t... I>
constexpr Microkernels MakeMicrokernels(std::index_sequence<I...>) {
  Microkernels table{};
  ((table.score[I / kVectors][I % kVectors] =
        &ScoreBlock<I / kVectors + 1, I % kVectors + 1>,
    table.value[I / kVectors][I % kVectors] =
        &ValueBlock<AsF32, ValueWay::kPacked, I / kVectors + 1,
                    I % kVectors + 1>,
    table.value_transposed[I / kVectors][I % kVectors] =
        &ValueBlock<AsF32, ValueWay::kTransposed, I / kVectors + 1,
                    I % kVectors + 1>,
    table
        .value_in_place[TypeIndex(DataType::kF32)][I / kVectors][I % kVectors] =
        &ValueBlock<AsF32, ValueWay::kInPlace, I / kVectors + 1,
                    I % kVectors + 1>,
    table
        .value_in_place[TypeIndex(DataType::kF16)][I / kVectors][I % kVectors] =
        &ValueBlock<AsF16, ValueWay::kInPlace, I / kVectors + 1,
                    I % kVectors + 1>,
    table.value_in_place[TypeIndex(DataType::kBF16)][I / kVectors]
                        [I % kVectors] =
        &ValueBlock<AsBf16, ValueWay::kInPlace, I / kVectors + 1,
                    I % kVectors + 1>),
   ...);
  return table;
}

inline constexpr Microkernels kMicrokernels =
    MakeMicrokernels(std::make_index_sequence<kRows * kVectors>());

// ---------------------------------------------------------------------------
// Few rows: keys as they lie

// Rows that share one pass over the keys, as far as registers go.
inline constexpr size_t kDirectRows = kLanes == 16 ? 6 : kLanes == 8 ? 3 : 2;
inline constexpr int64_t kDirectKeys = 4;

// The sums of four vectors' lanes.
HWY_INLINE void StoreSums(Vec a, Vec b, Vec c, Vec e, float* HWY_RESTRICT to) {
#if !ATTND_WIDE
  to[0] = hn::GetLane(a);
  to[1] = hn::GetLane(b);
  to[2] = hn::GetLane(c);
  to[3] = hn::GetLane(e);
#else
  const hn::Repartition<double, Floats> d2;
  const auto ab = hn::BitCast(d2, hn::Add(hn::InterleaveLower(kF, a, b),
                                          hn::InterleaveUpper(kF, a, b)));
  const auto ce = hn::BitCast(d2, hn::Add(hn::InterleaveLower(kF, c, e),
                                          hn::InterleaveUpper(kF, c, e)));
  // One sum of each in every block of 128 bits.
  const auto blocks = hn::Add(hn::BitCast(kF, hn::InterleaveLower(d2, ab, ce)),
                              hn::BitCast(kF, hn::InterleaveUpper(d2, ab, ce)));
  const hn::FixedTag<float, 8> f8;
  const hn::FixedTag<float, 4> f4;
#if HWY_TARGET == HWY_AVX3
  const auto half =
      hn::Add(hn::LowerHalf(f8, blocks), hn::UpperHalf(f8, blocks));
#else
  const auto half = blocks;
  (void)f8;
#endif
  hn::StoreU(hn::Add(hn::LowerHalf(f4, half), hn::UpperHalf(f4, half)), f4, to);
#endif
}

// scores[r][j] = dot(q[r], key j) for R rows and every key below `keys`, in
// whole groups of four: what is stored past the last key is of no meaning. q
// rows are padded with zeros to whole vectors.
template <class As, size_t R>
void DirectBlock(const float* HWY_RESTRICT q, int64_t q_stride,
                 const typename As::Element* key, int64_t key_stride,
                 int64_t keys, int64_t dims, float* HWY_RESTRICT scores,
                 int64_t score_stride) {
  const int64_t whole = dims / kLanes * kLanes;
  for (int64_t j = 0; j < keys; j += kDirectKeys) {
    const typename As::Element* row[kDirectKeys];
    Vec acc[R][kDirectKeys];
    ATTND_UNROLL
    for (int64_t i = 0; i < kDirectKeys; ++i) {
      // Past the end the last key is read again.
      row[i] = key + std::min(j + i, keys - 1) * key_stride;
      ATTND_UNROLL
      for (size_t r = 0; r < R; ++r) acc[r][i] = hn::Zero(kF);
    }
    for (int64_t d = 0; d < whole; d += kLanes) {
      Vec k[kDirectKeys];
      ATTND_UNROLL
      for (int64_t i = 0; i < kDirectKeys; ++i) {
        __builtin_prefetch(row[i] + d + Ahead::kStreamElements, 0, 2);
        k[i] = As::Load(kF, row[i] + d);
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
        const Vec k = LoadFirst<As>(kF, row[i] + whole,
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
      StoreSums(acc[r][0], acc[r][1], acc[r][2], acc[r][3],
                scores + static_cast<int64_t>(r) * score_stride + j);
    }
  }
}

// The same for any number of rows.
template <class As>
void DirectScores(const float* q, int64_t q_stride,
                  const typename As::Element* key, int64_t key_stride,
                  int64_t keys, int64_t dims, int64_t rows, float* scores,
                  int64_t score_stride) {
  constexpr auto kStep = static_cast<int64_t>(kDirectRows);
  for (int64_t r = 0; r < rows; r += kStep) {
    const float* from = q + r * q_stride;
    float* to = scores + r * score_stride;
    const auto run = [&](auto block) {
      block(from, q_stride, key, key_stride, keys, dims, to, score_stride);
    };
    switch (std::min(rows - r, kStep)) {
      case 1:
        run(&DirectBlock<As, 1>);
        break;
      case 2:
        run(&DirectBlock<As, 2>);
        break;
#if ATTND_WIDE
      case 3:
        run(&DirectBlock<As, 3>);
        break;
#endif
#if HWY_TARGET == HWY_AVX3
      case 4:
        run(&DirectBlock<As, 4>);
        break;
      case 5:
        run(&DirectBlock<As, 5>);
        break;
      case 6:
        run(&DirectBlock<As, 6>);
        break;
#endif
      default:
        break;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
