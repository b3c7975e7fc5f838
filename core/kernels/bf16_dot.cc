// The microkernels for bf16 pairs. VDPBF16PS multiplies two pairs in each lane
// and adds both products to an f32 sum, twice the work of an f32 multiply-add.
// They use intrinsics, and are in a file of their own, because Highway 1.0.3
// has no such operation. Everything else in a tile is shared with f32.
#include "core/kernels/microkernels.h"

#if defined(__x86_64__) && __has_include(<avx512bf16intrin.h>)

#include <immintrin.h>

// GCC 12 warns about undefined vectors in its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <cstddef>
#include <utility>

#define ATTND_BF16_TARGET __attribute__((target("avx512f,avx512bf16")))
#define ATTND_UNROLL _Pragma("GCC unroll 16")

namespace attnd {
namespace {

constexpr Geometry kGeometry = GeometryOf(Isa::kAvx512Bf16);
constexpr auto kLanes = static_cast<size_t>(kGeometry.lanes);
constexpr int64_t kPanelKeys = kGeometry.panel_keys();

ATTND_BF16_TARGET inline __m512bh Pairs(__m512 words) {
  return reinterpret_cast<__m512bh>(words);
}

template <size_t R, size_t N>
ATTND_BF16_TARGET void ScoreBlock(const float* q, int64_t q_stride,
                                  const float* panel, int64_t steps,
                                  float* scores, int64_t score_stride,
                                  float* row_max, PrefetchCursor ahead) {
  __m512 acc[R][N];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) acc[r][n] = _mm512_setzero_ps();
  }
  for (int64_t step = 0; step < steps; ++step) {
    __m512 k[N];
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) k[n] = _mm512_load_ps(panel + n * kLanes);
    panel += kPanelKeys;
    ahead.Next<1>();
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const __m512 x =
          _mm512_set1_ps(q[static_cast<int64_t>(r) * q_stride + step]);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) {
        acc[r][n] = _mm512_dpbf16_ps(acc[r][n], Pairs(x), Pairs(k[n]));
      }
    }
  }
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    float* out = scores + static_cast<int64_t>(r) * score_stride;
    __m512 max = _mm512_load_ps(row_max + r * kLanes);
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      _mm512_store_ps(out + n * kLanes, acc[r][n]);
      max = _mm512_max_ps(max, acc[r][n]);
    }
    _mm512_store_ps(row_max + r * kLanes, max);
  }
}

template <size_t R, size_t N>
ATTND_BF16_TARGET void ValueBlock(const float* weights, int64_t weight_stride,
                                  const float* value, int64_t steps,
                                  float* output, int64_t output_stride,
                                  PrefetchCursor ahead) {
  __m512 acc[R][N];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) acc[r][n] = _mm512_setzero_ps();
  }
  for (int64_t step = 0; step < steps; ++step) {
    __m512 v[N];
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) v[n] = _mm512_load_ps(value + n * kLanes);
    value += N * kLanes;
    ahead.Next<1>();
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const __m512 p = _mm512_set1_ps(
          weights[static_cast<int64_t>(r) * weight_stride + step]);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) {
        acc[r][n] = _mm512_dpbf16_ps(acc[r][n], Pairs(p), Pairs(v[n]));
      }
    }
  }
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    float* out = output + static_cast<int64_t>(r) * output_stride;
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      float* to = out + n * kLanes;
      _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), acc[r][n]));
    }
  }
}

template <size_t... I>
constexpr Microkernels MakeTable(std::index_sequence<I...>) {
  constexpr size_t kVectors = Microkernels::kMaxVectors;
  Microkernels table{};
  ((table.score[I / kVectors][I % kVectors] =
        &ScoreBlock<I / kVectors + 1, I % kVectors + 1>,
    table.value[I / kVectors][I % kVectors] =
        &ValueBlock<I / kVectors + 1, I % kVectors + 1>),
   ...);
  return table;
}

}  // namespace

const Microkernels& Bf16DotMicrokernels() {
  static constexpr Microkernels kTable =
      MakeTable(std::make_index_sequence<Microkernels::kMaxRows *
                                         Microkernels::kMaxVectors>());
  return kTable;
}

bool HasBf16Dot() { return __builtin_cpu_supports("avx512bf16") != 0; }

// On AMD's cores VDPBF16PS does twice the work of a multiply-add. On Intel's it
// does half of it (Xeon 6: 0.25 of the instructions in a cycle), so f32 is
// faster.
bool PrefersBf16Dot() { return __builtin_cpu_is("amd") != 0; }

}  // namespace attnd

#else

namespace attnd {

const Microkernels& Bf16DotMicrokernels() {
  static constexpr Microkernels kNone{};
  return kNone;
}

bool HasBf16Dot() { return false; }
bool PrefersBf16Dot() { return false; }

}  // namespace attnd

#endif
