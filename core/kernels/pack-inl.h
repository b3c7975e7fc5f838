// Copies keys and values into the order in which the microkernels read them:
// K^T in panels of kPanelKeys keys, and V in rows of whole SIMD vectors.
#if defined(ATTND_CORE_KERNELS_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_PACK_INL_H_
#undef ATTND_CORE_KERNELS_PACK_INL_H_
#else
#define ATTND_CORE_KERNELS_PACK_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/checked_math.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

#if ATTND_WIDE
// Returns the first four elements of every fourth row: row 0, 4, 8 and so on,
// as many as fill a vector. Each row fills 128 bits of the vector.
template <class As, class D>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, RowReader<As> rows) {
  if constexpr (hn::MaxLanes(d) == 4) {
    return rows.as.Load(d, rows.first);
  } else {
    const hn::Half<D> half;
    constexpr auto kHalf = static_cast<int64_t>(hn::MaxLanes(half));
    return hn::Combine(d, LoadBlocks(half, rows.From(kHalf, 0)),
                       LoadBlocks(half, rows));
  }
}

// Transposes the first four elements of kLanes rows. Calls `put(i, x)` for i =
// 0 to 3, where lane r of x is element i of row r.
template <class As, class Put>
HWY_INLINE void TransposeFour(RowReader<As> rows, bool rounds, const Put& put) {
  const hn::Repartition<double, Floats> d2;
  Vec a = LoadBlocks(kF, rows);
  Vec b = LoadBlocks(kF, rows.From(1, 0));
  Vec c = LoadBlocks(kF, rows.From(2, 0));
  Vec e = LoadBlocks(kF, rows.From(3, 0));
  if (rounds) {
    a = RoundToBf16(kF, a);
    b = RoundToBf16(kF, b);
    c = RoundToBf16(kF, c);
    e = RoundToBf16(kF, e);
  }
  // Transposes 4 x 4 elements within each block.
  const auto ab_low = hn::BitCast(d2, hn::InterleaveLower(kF, a, b));
  const auto ab_high = hn::BitCast(d2, hn::InterleaveUpper(kF, a, b));
  const auto ce_low = hn::BitCast(d2, hn::InterleaveLower(kF, c, e));
  const auto ce_high = hn::BitCast(d2, hn::InterleaveUpper(kF, c, e));
  put(0, hn::BitCast(kF, hn::InterleaveLower(d2, ab_low, ce_low)));
  put(1, hn::BitCast(kF, hn::InterleaveUpper(d2, ab_low, ce_low)));
  put(2, hn::BitCast(kF, hn::InterleaveLower(d2, ab_high, ce_high)));
  put(3, hn::BitCast(kF, hn::InterleaveUpper(d2, ab_high, ce_high)));
}
#endif

// Packs one panel of K^T: dst[d][j] = src[j][d] for the first `keys` rows j,
// and 0 for the other columns of the panel. If `rounds`, rounds the elements to
// bf16.
template <class As>
void PackPanel(RowReader<As> src, int64_t keys, int64_t dims, bool rounds,
               float* HWY_RESTRICT dst) {
  int64_t j = 0;
#if ATTND_WIDE
  for (; j + kLanes <= keys; j += kLanes) {
    const RowReader<As> rows = src.From(j, 0);
    float* HWY_RESTRICT to = dst + j;
    int64_t d = 0;
    for (; d + 4 <= dims; d += 4) {
      TransposeFour(rows.From(0, d), rounds, [&](int64_t i, Vec x) HWY_ATTR {
        hn::Store(x, kF, to + (d + i) * kPanelKeys);
      });
    }
    for (; d < dims; ++d) {
      for (int64_t i = 0; i < kLanes; ++i) {
        Vec x = LoadFirst(rows.as, kF, rows.At(i, d), 1);
        if (rounds) x = RoundToBf16(kF, x);
        to[d * kPanelKeys + i] = hn::GetLane(x);
      }
    }
  }
#endif
  for (int64_t d = 0; d < dims; ++d) {
    float* row = dst + d * kPanelKeys;
    for (int64_t i = j; i < keys; ++i) {
      Vec x = LoadFirst(src.as, kF, src.At(i, d), 1);
      if (rounds) x = RoundToBf16(kF, x);
      row[i] = hn::GetLane(x);
    }
    std::fill(row + keys, row + kPanelKeys, 0.0F);
  }
}

// Copies to[c][r] = from[r][c] for 16 rows of 16 words.
inline void TransposeTile(const float* from, int64_t from_stride,
                          float* HWY_RESTRICT to, int64_t to_stride) {
  for (int64_t r = 0; r < kAmxSteps; r += kLanes) {
#if ATTND_WIDE
    for (int64_t c = 0; c < kAmxSteps; c += 4) {
      TransposeFour(RowReader<AsF32>{from + r * from_stride + c, from_stride},
                    false, [&](int64_t i, Vec x) HWY_ATTR {
                      hn::Store(x, kF, to + (c + i) * to_stride + r);
                    });
    }
#else
    for (int64_t c = 0; c < kAmxSteps; ++c) {
      to[c * to_stride + r] = from[r * from_stride + c];
    }
#endif
  }
}

// Converts one row of `dims` elements to floats and multiplies them by
// `factor`. Sets the floats from dims up to `padded` to 0. If `rounds`, rounds
// the results to bf16.
template <class As>
HWY_INLINE void ConvertRow(As as, const typename As::Element* src, int64_t dims,
                           int64_t padded, float factor, bool rounds,
                           float* HWY_RESTRICT dst) {
  const Vec scale = hn::Set(kF, factor);
  int64_t d = 0;
  const auto put = [&](Vec x) HWY_ATTR {
    x = hn::Mul(x, scale);
    hn::Store(rounds ? RoundToBf16(kF, x) : x, kF, dst + d);
  };
  for (; d + kLanes <= dims; d += kLanes) put(as.Load(kF, src + d));
  if (d < dims) {
    put(LoadFirst(as, kF, src + d, static_cast<size_t>(dims - d)));
    d += kLanes;
  }
  std::fill(dst + std::min(d, padded), dst + padded, 0.0F);
}

// Does what ConvertRow does, but writes bf16. `padded` counts elements and is
// even.
template <class As>
HWY_INLINE void ConvertRowToBf16(As as, const typename As::Element* src,
                                 int64_t dims, int64_t padded, float factor,
                                 uint16_t* HWY_RESTRICT dst) {
  const Vec scale = hn::Set(kF, factor);
  int64_t d = 0;
  for (; d + kLanes <= dims; d += kLanes) {
    AsBf16::Store(kF, hn::Mul(as.Load(kF, src + d), scale), dst + d);
  }
  for (; d < padded; ++d) {
    const auto left = static_cast<size_t>(d < dims ? 1 : 0);
    StoreFirst<AsBf16>(
        kF, hn::Mul(LoadFirst(as, kF, src + (d < dims ? d : 0), left), scale),
        dst + d, 1);
  }
}

// Packs one panel of K^T for keys of bf16. Each word holds a pair of
// neighbouring head dimensions of one key.
inline void PackPanelPairs(RowReader<AsBf16> src, int64_t keys, int64_t dims,
                           float* HWY_RESTRICT dst) {
#if ATTND_WIDE
  if (src.stride % 2 == 0 && dims % 2 == 0 &&
      reinterpret_cast<uintptr_t>(src.first) % 4 == 0) {
    PackPanel(RowReader<AsF32>{reinterpret_cast<const float*>(src.first),
                               src.stride / 2},
              keys, dims / 2, false, dst);
    return;
  }
#endif
  auto* to = reinterpret_cast<uint16_t*>(dst);
  for (int64_t j = 0; j < kPanelKeys; ++j) {
    for (int64_t d = 0; d < dims + dims % 2; ++d) {
      to[(d / 2 * kPanelKeys + j) * 2 + d % 2] =
          j < keys && d < dims ? *src.At(j, d) : uint16_t{0};
    }
  }
}

// Does what PackPanelPairs does for keys of any type, which it rounds to bf16.
template <class As>
void PackPanelAsPairs(RowReader<As> src, int64_t keys, int64_t dims,
                      float* HWY_RESTRICT dst) {
  if constexpr (std::is_same_v<As, AsBf16>) {
    PackPanelPairs(src, keys, dims, dst);
  } else {
    constexpr int64_t kDims = 128;  // how many are rounded at a time
    HWY_ALIGN uint16_t slice[kPanelKeys * kDims];
    for (int64_t d = 0; d < dims; d += kDims) {
      const int64_t count = std::min(kDims, dims - d);
      const int64_t padded = count + count % 2;
      for (int64_t j = 0; j < keys; ++j) {
        ConvertRowToBf16(src.as, src.At(j, d), count, padded, 1,
                         slice + j * kDims);
      }
      PackPanelPairs(RowReader<AsBf16>{slice, kDims}, keys, padded,
                     dst + d / 2 * kPanelKeys);
    }
  }
}

// Packs up to kKeysPerSum rows of V as the microkernels read them: one group of
// columns (VisitColumns) after the other, and within a group one key after the
// other. The last SIMD vector of a row is filled up with zeros.
template <class As>
void PackValueChunk(RowReader<As> src, int64_t keys, int64_t dims, bool rounds,
                    float* HWY_RESTRICT dst) {
  VisitColumns(dims, [&](int64_t column, int64_t vectors) HWY_ATTR {
    float* HWY_RESTRICT to = dst + column * kKeysPerSum;
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t c = column; c < column + vectors * kLanes; c += kLanes) {
        const typename As::Element* from = src.At(j, c);
        Vec x = c + kLanes <= dims ? src.as.Load(kF, from)
                                   : LoadFirst(src.as, kF, from,
                                               static_cast<size_t>(dims - c));
        if (rounds) x = RoundToBf16(kF, x);
        hn::Store(x, kF, to);
        to += kLanes;
      }
    }
  });
}

// Returns kLanes elements, rounded to bf16, each in the lower half of its lane.
template <class As>
HWY_INLINE auto LoadBf16Bits(As as, const typename As::Element* from) {
  const hn::RebindToUnsigned<Floats> du;
  if constexpr (std::is_same_v<As, AsBf16>) {
    const hn::Rebind<uint16_t, Floats> d16;
    return hn::PromoteTo(du, hn::LoadU(d16, from));
  } else {
    const Vec rounded = RoundToBf16(kF, as.Load(kF, from));
    return hn::ShiftRight<16>(hn::BitCast(du, rounded));
  }
}

// Packs rows of V as PackValueChunk does, but as pairs of bf16: a word holds
// one column of keys j and j + 1. If there is no key j + 1, its half is 0.
template <class As>
void PackValuePairChunk(RowReader<As> src, int64_t keys, int64_t dims,
                        float* HWY_RESTRICT dst) {
  const hn::RebindToUnsigned<Floats> du;
  const auto load = [&](int64_t j, int64_t c) HWY_ATTR {
    if (j >= keys) return hn::Zero(du);
    const typename As::Element* from = src.At(j, c);
    HWY_ALIGN typename As::Element lanes[kLaneCount] = {};
    if (c + kLanes > dims) {
      std::memcpy(lanes, from, static_cast<size_t>(dims - c) * sizeof(*from));
      from = lanes;
    }
    return LoadBf16Bits(src.as, from);
  };
  VisitColumns(dims, [&](int64_t column, int64_t vectors) HWY_ATTR {
    float* HWY_RESTRICT to = dst + column * (kKeysPerSum / 2);
    for (int64_t j = 0; j < keys; j += 2) {
      for (int64_t c = column; c < column + vectors * kLanes; c += kLanes) {
        const auto pair = hn::Or(load(j, c), hn::ShiftLeft<16>(load(j + 1, c)));
        hn::Store(hn::BitCast(kF, pair), kF, to);
        to += kLanes;
      }
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
