// Copies queries, keys and values into the order in which AMX reads them
// (core/kernels/amx_bf16.h): every number as one or three bf16 terms, in tiles
// of 16 rows by 16 words without gaps.
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

#include "base/checked_math.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// Loads a SIMD vector of elements of a row, from element d on. Lanes after the
// last of the row's `dims` elements are 0.
template <class As>
HWY_INLINE Vec LoadAt(As as, const typename As::Element* row, int64_t dims,
                      int64_t d) {
  if (d + kLanes <= dims) return as.Load(kF, row + d);
  if (d >= dims) return hn::Zero(kF);
#if ATTND_WIDE
  if constexpr (std::is_same_v<As, AsF32>) {
    return hn::MaskedLoad(FirstLanes(dims - d), kF, row + d);
  }
#endif
  return LoadFirst(as, kF, row + d, static_cast<size_t>(dims - d));
}

// Returns the largest magnitude, as the bits of a float.
HWY_INLINE uint32_t LargestOf(Bits magnitudes) {
  return hn::GetLane(hn::MaxOfLanes(kU, magnitudes));
}

inline constexpr uint32_t kInfinityBits = 0x7F800000;

// Elements of V that are not finite, or that are smaller than this but not 0,
// must not be split into bf16 terms. core/kernels/amx_bf16x3_tile-inl.h says
// why.
inline constexpr float kMinSplitValue = 0x1p-80F;

// Returns a mask for words that hold two bf16 each, the first terms of elements
// of V. A half of the mask is all ones if that element may be split into terms
// (see kMinSplitValue), and otherwise 0.
HWY_INLINE Bits SplittableHalves(Bits words) {
  constexpr auto kMin = std::bit_cast<uint32_t>(kMinSplitValue);
  const auto half = [&](Bits x, uint32_t bits) HWY_ATTR {
    // An element may be split if kMinSplitValue <= |element| < infinity.
    const Bits above =
        hn::Sub(hn::And(x, hn::Set(kU, 0x7FFF0000U)), hn::Set(kU, kMin));
    return hn::IfThenElseZero(hn::Lt(above, hn::Set(kU, kInfinityBits - kMin)),
                              hn::Set(kU, bits));
  };
  return hn::Or(half(words, 0xFFFF0000U),
                half(hn::ShiftLeft<16>(words), 0x0000FFFFU));
}

// Multiplies one row of `dims` elements by `factor` and splits the results into
// kTerms bf16 terms. Term t of the whole row begins at `to + t * term_stride`
// and has `padded` elements, a multiple of kAmxBlock; those from `dims` on are
// 0. A single term is the number rounded. If there are several terms, raises
// each lane of `largest` to the magnitudes of the elements in it.
template <int kTerms, class As>
HWY_INLINE void SplitRow(As as, const typename As::Element* src, int64_t dims,
                         int64_t padded, float factor,
                         uint16_t* HWY_RESTRICT to, int64_t term_stride,
                         Bits& largest) {
  const Vec scale = hn::Set(kF, factor);
  const auto put = [&](Vec low, Vec high, int64_t d) HWY_ATTR {
    if constexpr (kTerms > 1) {
      largest = hn::Max(largest, hn::Max(Magnitude(low), Magnitude(high)));
    }
    const Bf16Terms<kTerms, Floats> lows(kF, hn::Mul(low, scale));
    const Bf16Terms<kTerms, Floats> highs(kF, hn::Mul(high, scale));
    ATTND_UNROLL
    for (int t = 0; t < kTerms; ++t) {
      StoreNativeBf16(kF, lows.term[t], highs.term[t],
                      to + t * term_stride + d);
    }
  };
  int64_t d = 0;
  for (; d + 2 * kLanes <= dims; d += 2 * kLanes) {
    put(as.Load(kF, src + d), as.Load(kF, src + d + kLanes), d);
  }
  for (; d < padded; d += 2 * kLanes) {
    put(LoadAt(as, src, dims, d), LoadAt(as, src, dims, d + kLanes), d);
  }
}

// Packs one panel of K^T as AMX tiles. Their order, from the outermost loop to
// the innermost: every 32 keys, every 32 head dimensions, every term, and then
// two tiles with 16 keys each, whose rows are pairs of dimensions. Keys from
// `keys` on are 0. If there are several terms, returns the largest magnitude in
// each lane.
template <int kTerms, class As>
Bits PackKeyTiles(RowReader<As> src, int64_t keys, int64_t dims,
                  float* HWY_RESTRICT dst) {
  constexpr auto kSlice = static_cast<size_t>(kTerms * kAmxSteps * kAmxBlock);
  HWY_ALIGN uint16_t slice[kSlice];
  Bits largest = hn::Zero(kU);
  const int64_t groups = CeilDiv(dims, kAmxBlock);
  for (int64_t first = 0; first < kPanelKeys; first += kAmxSteps) {
    const int64_t count = std::clamp<int64_t>(keys - first, 0, kAmxSteps);
    if (count < kAmxSteps) std::fill(std::begin(slice), std::end(slice), 0);
    const RowReader<As> rows = src.From(first, 0);
    float* const pair =
        dst + first / kAmxBlock * groups * kTerms * 2 * kAmxTileWords;
    const int64_t column = first / kAmxSteps % 2;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t j = 0; j < count; ++j) {
        SplitRow<kTerms>(rows.as, rows.At(j, g * kAmxBlock),
                         std::min(dims - g * kAmxBlock, kAmxBlock), kAmxBlock,
                         1, slice + j * kAmxBlock, kAmxSteps * kAmxBlock,
                         largest);
      }
      for (int t = 0; t < kTerms; ++t) {
        TransposeTile(
            reinterpret_cast<const float*>(slice) + t * kAmxSteps * kAmxSteps,
            kAmxSteps, pair + ((g * kTerms + t) * 2 + column) * kAmxTileWords,
            kAmxSteps);
      }
    }
  }
  return largest;
}

// Packs up to kKeysPerSum rows of V as AMX tiles. Their order, from the
// outermost loop to the innermost: every two SIMD vectors of columns, every 32
// keys, every term, and then one tile for each vector. The rows of a tile are
// pairs of keys, paired as StoreTwoWeights pairs them. Returns true if there
// are several terms and V has an element that must not be split.
template <int kTerms, class As>
bool PackValueTiles(RowReader<As> src, int64_t keys, int64_t dims,
                    float* HWY_RESTRICT dst) {
  constexpr auto kMin = std::bit_cast<uint32_t>(kMinSplitValue);
  Bits largest = hn::Zero(kU);
  // The smallest magnitude, minus 1. For an element of 0 the subtraction wraps
  // around to the largest number, so zeros do not count.
  Bits smallest = hn::Set(kU, kInfinityBits);
  [[maybe_unused]] const auto measure = [&](Vec x) HWY_ATTR {
    const Bits size = Magnitude(x);
    largest = hn::Max(largest, size);
    smallest = hn::Min(smallest, hn::Sub(size, hn::Set(kU, 1)));
  };
  const auto load = [&](int64_t j, int64_t c) HWY_ATTR {
    if (j >= keys) return hn::Zero(kF);
    const typename As::Element* const row = src.At(j, 0);
    return c + kLanes <= dims ? src.as.Load(kF, row + c)
                              : LoadAt(src.as, row, dims, c);
  };
  const int64_t vectors = CeilDiv(dims, kLanes);
  // Keys are the outer loop, so that rows are read in the order of memory.
  for (int64_t j = 0; j < keys; j += kAmxBlock) {
    for (int64_t v = 0; v < vectors; v += 2) {
      const int64_t columns = std::min<int64_t>(2, vectors - v);
      float* const group =
          dst + (v * (kKeysPerSum / kAmxBlock) + j / kAmxBlock * columns) *
                    kTerms * kAmxTileWords;
      for (int64_t i = 0; i < kAmxSteps; ++i) {
        for (int64_t c = 0; c < columns; ++c) {
          const int64_t key = kTerms == 1 ? j + 2 * i : j + i;
          const int64_t other = kTerms == 1 ? key + 1 : key + kLanes;
          const Vec first = load(key, (v + c) * kLanes);
          const Vec second = load(other, (v + c) * kLanes);
          const Bf16Terms<kTerms, Floats> low(kF, first);
          const Bf16Terms<kTerms, Floats> high(kF, second);
          ATTND_UNROLL
          for (int t = 0; t < kTerms; ++t) {
            hn::Store(UpperHalves(kF, low.term[t], high.term[t]), kF,
                      group + (t * columns + c) * kAmxTileWords + i * kLanes);
          }
          if constexpr (kTerms > 1) {
            measure(first);
            measure(second);
          }
        }
      }
    }
  }
  return hn::GetLane(hn::MaxOfLanes(kU, largest)) >= kInfinityBits ||
         hn::GetLane(hn::MinOfLanes(kU, smallest)) < kMin - 1;
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
