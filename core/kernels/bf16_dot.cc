// The microkernels for bf16 pairs. VDPBF16PS of AVX-512 and BFDOT of ARM
// multiply two pairs in each lane and add both products to an f32 sum, twice
// the work of an f32 multiply-add. They use intrinsics, and are in a file of
// their own, because Highway 1.0.3 has no such operation. Everything else in a
// tile is shared with f32.
#include "core/kernels/microkernels.h"

#if defined(__x86_64__) && __has_include(<avx512bf16intrin.h>)
#define ATTND_BF16_X86 1
#include <immintrin.h>
// GCC 12 warns about undefined vectors in its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#elif defined(__aarch64__) && defined(__linux__)
#define ATTND_BF16_ARM 1
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#if defined(ATTND_BF16_X86) || defined(ATTND_BF16_ARM)

#include <cstddef>
#include <utility>

#define ATTND_UNROLL _Pragma("GCC unroll 16")
#define ATTND_INLINE __attribute__((always_inline)) inline

namespace attnd {
namespace {

// What the microkernels need of each architecture: a vector of f32 sums or of
// words (pairs of bf16), one word that is multiplied with every lane, and the
// operations on them.
#if defined(ATTND_BF16_X86)

#define ATTND_BF16_TARGET __attribute__((target("avx512f,avx512bf16")))
constexpr Geometry kGeometry = GeometryOf(Isa::kAvx512Bf16);
using Vec = __m512;
using Word = __m512;

ATTND_BF16_TARGET ATTND_INLINE Vec Zero() { return _mm512_setzero_ps(); }
ATTND_BF16_TARGET ATTND_INLINE Vec Load(const float* from) {
  return _mm512_load_ps(from);
}
ATTND_BF16_TARGET ATTND_INLINE void Store(Vec x, float* to) {
  _mm512_store_ps(to, x);
}
ATTND_BF16_TARGET ATTND_INLINE Word WordOf(float word) {
  return _mm512_set1_ps(word);
}
ATTND_BF16_TARGET ATTND_INLINE Vec Add(Vec a, Vec b) {
  return _mm512_add_ps(a, b);
}
ATTND_BF16_TARGET ATTND_INLINE Vec Max(Vec a, Vec b) {
  return _mm512_max_ps(a, b);
}
// Returns sum + x * y.
ATTND_BF16_TARGET ATTND_INLINE Vec Dot(Vec sum, Word x, Vec y) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x),
                          reinterpret_cast<__m512bh>(y));
}

#else

#define ATTND_BF16_TARGET __attribute__((target("arch=armv8.2-a+bf16")))
constexpr Geometry kGeometry = GeometryOf(Isa::kNeonBf16);
using Vec = float32x4_t;
using Word = bfloat16x4_t;  // the first half

ATTND_BF16_TARGET ATTND_INLINE Vec Zero() { return vdupq_n_f32(0); }
ATTND_BF16_TARGET ATTND_INLINE Vec Load(const float* from) {
  return vld1q_f32(from);
}
ATTND_BF16_TARGET ATTND_INLINE void Store(Vec x, float* to) {
  vst1q_f32(to, x);
}
ATTND_BF16_TARGET ATTND_INLINE Word WordOf(float word) {
  return vreinterpret_bf16_f32(float32x2_t{word, 0});
}
ATTND_BF16_TARGET ATTND_INLINE Vec Add(Vec a, Vec b) { return vaddq_f32(a, b); }
// As in the f32 microkernels, a number wins against NaN.
ATTND_BF16_TARGET ATTND_INLINE Vec Max(Vec a, Vec b) {
  return vmaxnmq_f32(a, b);
}
// Returns sum + x * y.
ATTND_BF16_TARGET ATTND_INLINE Vec Dot(Vec sum, Word x, Vec y) {
  return vbfdotq_lane_f32(sum, vreinterpretq_bf16_f32(y), x, 0);
}

#endif

constexpr auto kLanes = static_cast<size_t>(kGeometry.lanes);
constexpr int64_t kPanelKeys = kGeometry.panel_keys();

template <size_t R, size_t N>
ATTND_BF16_TARGET void ScoreBlock(const float* q, int64_t q_stride,
                                  const float* panel, int64_t steps,
                                  float* scores, int64_t score_stride,
                                  float* row_max, PrefetchCursor ahead) {
  Vec acc[R][N];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) acc[r][n] = Zero();
  }
  for (int64_t step = 0; step < steps; ++step) {
    Vec k[N];
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) k[n] = Load(panel + n * kLanes);
    panel += kPanelKeys;
    ahead.Next<1>();
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const Word x = WordOf(q[static_cast<int64_t>(r) * q_stride + step]);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) {
        acc[r][n] = Dot(acc[r][n], x, k[n]);
      }
    }
  }
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    float* out = scores + static_cast<int64_t>(r) * score_stride;
    Vec max = Load(row_max + r * kLanes);
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      Store(acc[r][n], out + n * kLanes);
      max = Max(max, acc[r][n]);
    }
    Store(max, row_max + r * kLanes);
  }
}

template <size_t R, size_t N>
ATTND_BF16_TARGET void ValueBlock(const float* weights, int64_t weight_stride,
                                  const float* value, int64_t steps,
                                  float* output, int64_t output_stride,
                                  PrefetchCursor ahead) {
  Vec acc[R][N];
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) acc[r][n] = Zero();
  }
  for (int64_t step = 0; step < steps; ++step) {
    Vec v[N];
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) v[n] = Load(value + n * kLanes);
    value += N * kLanes;
    ahead.Next<1>();
    ATTND_UNROLL
    for (size_t r = 0; r < R; ++r) {
      const Word p =
          WordOf(weights[static_cast<int64_t>(r) * weight_stride + step]);
      ATTND_UNROLL
      for (size_t n = 0; n < N; ++n) {
        acc[r][n] = Dot(acc[r][n], p, v[n]);
      }
    }
  }
  ATTND_UNROLL
  for (size_t r = 0; r < R; ++r) {
    float* out = output + static_cast<int64_t>(r) * output_stride;
    ATTND_UNROLL
    for (size_t n = 0; n < N; ++n) {
      float* to = out + n * kLanes;
      Store(Add(Load(to), acc[r][n]), to);
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

#if defined(ATTND_BF16_X86)

bool HasBf16Dot() { return __builtin_cpu_supports("avx512bf16") != 0; }

// On AMD's cores VDPBF16PS does twice the work of a multiply-add. On Intel's it
// does half of it (Xeon 6: 0.25 of the instructions in a cycle), so f32 is
// faster.
bool PrefersBf16Dot() { return __builtin_cpu_is("amd") != 0; }

#else

// The C library of an old system may not have this name (HWCAP2_BF16).
bool HasBf16Dot() {
  constexpr unsigned long kBf16 = 1UL << 14;
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
}

// This is not measured. Arm's optimisation guides for Neoverse V1 and N2 say
// that the core starts as many BFDOT as multiply-adds in a cycle.
bool PrefersBf16Dot() { return true; }

#endif

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
