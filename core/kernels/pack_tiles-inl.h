// Laying queries, keys and values out for AMX (core/kernels/amx_bf16.h): as the
// bf16 parts of their numbers, in tiles of 16 rows and 16 words without a gap.
// For inclusion by kernels only, once a target.
#if defined(ATTND_CORE_KERNELS_PACK_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_PACK_TILES_INL_H_
#undef ATTND_CORE_KERNELS_PACK_TILES_INL_H_
#else
#define ATTND_CORE_KERNELS_PACK_TILES_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/checked_math.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// The vector of a row of `dims` elements that begins at d, 0 behind them.
template <class As>
HWY_INLINE Vec LoadAt(const typename As::Element* row, int64_t dims,
                      int64_t d) {
  if (d + kLanes <= dims) return As::Load(kF, row + d);
  if (d >= dims) return hn::Zero(kF);
#if ATTND_WIDE
  if constexpr (std::is_same_v<As, AsF32>) {
    return hn::MaskedLoad(FirstLanes(dims - d), kF, row + d);
  }
#endif
  return LoadFirst<As>(kF, row + d, static_cast<size_t>(dims - d));
}

// The bits of a float.
HWY_INLINE uint32_t LargestOf(Bits magnitudes) {
  return hn::GetLane(hn::MaxOfLanes(kU, magnitudes));
}

inline constexpr uint32_t kInfinityBits = 0x7F800000;

// Of the backward pass. Whether the largest of some numbers, if there is any,
// is so large that no part of what counts beside it, nor a product of two
// parts, is denormal, which AMX takes for 0.
inline bool HaveParts(uint32_t largest, float least) {
  return largest == 0 || largest >= std::bit_cast<uint32_t>(least);
}

inline constexpr float kLeastScored = 0x1p-50F;

// Values that are smaller, but not 0, or not finite are not multiplied by
// parts: core/kernels/amx_tile-inl.h.
inline constexpr float kLeastValue = 0x1p-80F;

// Which halves of words of bf16, the first parts of values, are multiplied by
// parts, or 0.
HWY_INLINE Bits HalvesWithParts(Bits words) {
  constexpr auto kLeast = std::bit_cast<uint32_t>(kLeastValue);
  const auto half = [&](Bits x, uint32_t bits) HWY_ATTR {
    // From kLeastValue on, below infinity.
    const Bits above =
        hn::Sub(hn::And(x, hn::Set(kU, 0x7FFF0000U)), hn::Set(kU, kLeast));
    return hn::IfThenElseZero(
        hn::Lt(above, hn::Set(kU, kInfinityBits - kLeast)), hn::Set(kU, bits));
  };
  return hn::Or(half(words, 0xFFFF0000U),
                half(hn::ShiftLeft<16>(words), 0x0000FFFFU));
}

// One row of `dims` elements times `factor`, by parts of `padded` bf16, the
// rest of which are 0: part p at `to + p * part_stride`. `padded` is a multiple
// of kAmxBlock. A single part is rounded. Raises `largest` to the magnitudes
// of several.
template <int kParts, class As>
HWY_INLINE void SplitRow(const typename As::Element* src, int64_t dims,
                         int64_t padded, float factor,
                         uint16_t* HWY_RESTRICT to, int64_t part_stride,
                         Bits& largest) {
  const Vec scale = hn::Set(kF, factor);
  const auto put = [&](Vec low, Vec high, int64_t d) HWY_ATTR {
    if constexpr (kParts > 1) {
      largest = hn::Max(largest, hn::Max(Magnitude(low), Magnitude(high)));
    }
    const Bf16Parts<kParts, Floats> lows(kF, hn::Mul(low, scale));
    const Bf16Parts<kParts, Floats> highs(kF, hn::Mul(high, scale));
    ATTND_UNROLL
    for (int p = 0; p < kParts; ++p) {
      StoreNativeBf16(kF, lows.part[p], highs.part[p],
                      to + p * part_stride + d);
    }
  };
  int64_t d = 0;
  for (; d + 2 * kLanes <= dims; d += 2 * kLanes) {
    put(As::Load(kF, src + d), As::Load(kF, src + d + kLanes), d);
  }
  for (; d < padded; d += 2 * kLanes) {
    put(LoadAt<As>(src, dims, d), LoadAt<As>(src, dims, d + kLanes), d);
  }
}

// K^T of one panel: for every two columns of tiles (32 keys) their groups of 32
// dimensions, for each of these its parts, for each of these two tiles, whose
// rows are pairs of dimensions. Keys that are missing are 0. Returns the
// largest magnitudes if there are several parts.
template <int kParts, class As>
Bits PackKeyTiles(const typename As::Element* src, int64_t stride, int64_t keys,
                  int64_t dims, float* HWY_RESTRICT dst) {
  constexpr auto kSlice = static_cast<size_t>(kParts * kAmxSteps * kAmxBlock);
  HWY_ALIGN uint16_t slice[kSlice];
  Bits largest = hn::Zero(kU);
  const int64_t groups = CeilDiv(dims, kAmxBlock);
  for (int64_t first = 0; first < kPanelKeys; first += kAmxSteps) {
    const int64_t count = std::clamp<int64_t>(keys - first, 0, kAmxSteps);
    if (count < kAmxSteps) std::fill(std::begin(slice), std::end(slice), 0);
    const typename As::Element* const rows = src + first * stride;
    float* const pair =
        dst + first / kAmxBlock * groups * kParts * 2 * kAmxTileWords;
    const int64_t column = first / kAmxSteps % 2;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t j = 0; j < count; ++j) {
        SplitRow<kParts, As>(rows + j * stride + g * kAmxBlock,
                             std::min(dims - g * kAmxBlock, kAmxBlock),
                             kAmxBlock, 1, slice + j * kAmxBlock,
                             kAmxSteps * kAmxBlock, largest);
      }
      for (int p = 0; p < kParts; ++p) {
        TransposeTile(
            reinterpret_cast<const float*>(slice) + p * kAmxSteps * kAmxSteps,
            kAmxSteps, pair + ((g * kParts + p) * 2 + column) * kAmxTileWords,
            kAmxSteps);
      }
    }
  }
  return largest;
}

// Up to kKeysPerSum rows of values: for every two vectors of columns the groups
// of 32 keys, for each of these its parts, for each of these a tile for each
// vector, whose rows are pairs of keys as StoreTwoWeights has them. Returns
// whether any value is to stay out of products of several parts.
template <int kParts, class As>
bool PackValueTiles(const typename As::Element* src, int64_t stride,
                    int64_t keys, int64_t dims, float* HWY_RESTRICT dst) {
  constexpr auto kLeast = std::bit_cast<uint32_t>(kLeastValue);
  Bits largest = hn::Zero(kU);
  Bits least = hn::Set(kU, kInfinityBits);  // magnitude - 1: 0 is the largest
  [[maybe_unused]] const auto look_at = [&](Vec x) HWY_ATTR {
    const Bits size = Magnitude(x);
    largest = hn::Max(largest, size);
    least = hn::Min(least, hn::Sub(size, hn::Set(kU, 1)));
  };
  const auto load = [&](int64_t j, int64_t c) HWY_ATTR {
    if (j >= keys) return hn::Zero(kF);
    const typename As::Element* const row = src + j * stride;
    return c + kLanes <= dims ? As::Load(kF, row + c)
                              : LoadAt<As>(row, dims, c);
  };
  const int64_t vectors = CeilDiv(dims, kLanes);
  // Keys outside, so that rows are read as they lie.
  for (int64_t j = 0; j < keys; j += kAmxBlock) {
    for (int64_t v = 0; v < vectors; v += 2) {
      const int64_t columns = std::min<int64_t>(2, vectors - v);
      float* const group =
          dst + (v * (kKeysPerSum / kAmxBlock) + j / kAmxBlock * columns) *
                    kParts * kAmxTileWords;
      for (int64_t i = 0; i < kAmxSteps; ++i) {
        for (int64_t c = 0; c < columns; ++c) {
          const int64_t key = kParts == 1 ? j + 2 * i : j + i;
          const int64_t other = kParts == 1 ? key + 1 : key + kLanes;
          const Vec first = load(key, (v + c) * kLanes);
          const Vec second = load(other, (v + c) * kLanes);
          const Bf16Parts<kParts, Floats> low(kF, first);
          const Bf16Parts<kParts, Floats> high(kF, second);
          ATTND_UNROLL
          for (int p = 0; p < kParts; ++p) {
            hn::Store(UpperHalves(kF, low.part[p], high.part[p]), kF,
                      group + (p * columns + c) * kAmxTileWords + i * kLanes);
          }
          if constexpr (kParts > 1) {
            look_at(first);
            look_at(second);
          }
        }
      }
    }
  }
  return hn::GetLane(hn::MaxOfLanes(kU, largest)) >= kInfinityBits ||
         hn::GetLane(hn::MinOfLanes(kU, least)) < kLeast - 1;
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
