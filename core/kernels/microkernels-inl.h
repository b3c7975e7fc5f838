// The f32 microkernels of one target.
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

// The number of steps between updates of counters and addresses. An update
// takes the place of a multiply-add, because both use the same execution ports,
// and a core that starts two multiply-adds in a cycle has no others.
inline constexpr int kUnroll = 4;

// The ScoreBlockFn for R rows and N vectors.
template <size_t R, size_t N>
void ScoreBlock(const float* q, int64_t q_stride,
                const float* HWY_RESTRICT panel, int64_t steps,
                float* HWY_RESTRICT scores, int64_t score_stride,
                float* HWY_RESTRICT row_max, PrefetchCursor ahead) {
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

// The ValueBlockFn for R rows and N vectors.
template <bool kTransposed, size_t R, size_t N>
void ValueBlock(const float* HWY_RESTRICT weights, int64_t weight_stride,
                const float* HWY_RESTRICT value, int64_t steps,
                float* HWY_RESTRICT output, int64_t output_stride,
                PrefetchCursor ahead) {
  constexpr int64_t kValueStride = static_cast<int64_t>(N) * kLanes;
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
                   kTransposed
                       ? weights[step * weight_stride + static_cast<int64_t>(r)]
                       : row[r][step]);
  };
  int64_t j = 0;
  const auto step = [&](int64_t i) HWY_ATTR {
    Vec v[N];
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      v[n] = hn::Load(kF, value + i * kValueStride + n * kLaneCount);
    }
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const Vec p = weight(r, j + i);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) acc[r][n] = hn::MulAdd(p, v[n], acc[r][n]);
    }
  };
  for (; j + kUnroll <= steps; j += kUnroll) {
    ahead.Next<kUnroll>();
    ATTND_UNROLL
    for (int64_t i = 0; i < kUnroll; ++i) step(i);
    value += kUnroll * kValueStride;
  }
  for (; j < steps; ++j) {
    step(0);
    value += kValueStride;
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
        &ValueBlock<false, I / kVectors + 1, I % kVectors + 1>,
    table.value_transposed[I / kVectors][I % kVectors] =
        &ValueBlock<true, I / kVectors + 1, I % kVectors + 1>),
   ...);
  return table;
}

inline constexpr Microkernels kMicrokernels =
    MakeMicrokernels(std::make_index_sequence<kRows * kVectors>());

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
