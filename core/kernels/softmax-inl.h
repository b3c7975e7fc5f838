// Turns dot products of a query row with keys into weights: applies soft cap,
// ALiBi and bias, hides the keys that the row does not see, and takes the
// exponential.
#if defined(ATTND_CORE_KERNELS_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_SOFTMAX_INL_H_
#undef ATTND_CORE_KERNELS_SOFTMAX_INL_H_
#else
#define ATTND_CORE_KERNELS_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/kernels/convert-inl.h"
#include "core/kernels/exp2-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// The visibility bits of a row say which keys of a tile it sees. Those of one
// SIMD vector of keys take two bytes. They are read eight bytes at a time, so
// there must be spare space after the last.
inline constexpr int64_t kBytesPerMask = 2;

HWY_INLINE LaneMask LoadVisible(const uint8_t* visible, int64_t key) {
  return hn::LoadMaskBits(kF, visible + key / kLanes * kBytesPerMask);
}

HWY_INLINE void StoreVisible(LaneMask mask, uint8_t* visible, int64_t key) {
  hn::StoreMaskBits(kF, mask, visible + key / kLanes * kBytesPerMask);
}

inline bool IsVisible(const uint8_t* visible, int64_t key) {
  const int64_t lane = key % kLanes;
  const uint8_t byte = visible[key / kLanes * kBytesPerMask + lane / 8];
  return ((byte >> (lane % 8)) & 1) != 0;
}

// Loads the elements of the bias for kLanes keys from `key` on. `row` points to
// the element for the tile's first key. Elements follow one another, or, if
// `stride` is 0, one element counts for all keys. Reads no element of key `end`
// or later.
template <class As>
HWY_INLINE Vec LoadBroadcast(const std::byte* row, int64_t stride, int64_t key,
                             int64_t end) {
  const auto* from = reinterpret_cast<const typename As::Element*>(row);
  if (stride == 0) {
    return hn::Set(kF, hn::GetLane(LoadFirst(As(), kF, from, 1)));
  }
  if (key + kLanes <= end) return As().Load(kF, from + key);
  return LoadFirst(As(), kF, from + key, static_cast<size_t>(end - key));
}

// Returns which of the kLanes keys from `key` on are visible according to the
// mask tensor. `row` is the row of the mask from the tile's first key on.
HWY_INLINE LaneMask LoadShown(const std::byte* row, int64_t stride, int64_t key,
                              int64_t end) {
  if (stride == 0) return FirstLanes(row[0] != std::byte{0} ? kLanes : 0);
  const hn::Rebind<uint8_t, Floats> d8;
  const hn::RebindToUnsigned<Floats> du;
  HWY_ALIGN uint8_t bytes[kLaneCount] = {};
  const auto* from = reinterpret_cast<const uint8_t*>(row) + key;
  if (key + kLanes > end) {
    std::memcpy(bytes, from, static_cast<size_t>(end - key));
    from = bytes;
  }
  const auto wide = hn::PromoteTo(du, hn::LoadU(d8, from));
  return hn::RebindMask(kF, hn::Ne(wide, hn::Zero(du)));
}

// What the options do to the scores of one query row. `bias` points to the
// element for the tile's first key.
struct RowAdjustment {
  RowAdjustment(const AttentionParams& params, float scale_of_scores)
      : scale(scale_of_scores), soft_cap(params.soft_cap) {}

  float scale;
  float soft_cap;                   // 0 = none
  float slope = 0;                  // 0 = none
  int64_t distance = 0;             // row's position - tile's first key
  const std::byte* bias = nullptr;  // null = none
  int64_t bias_stride = 0;
};

// Returns the scores of the kLanes keys from j on, computed from their dot
// products by the formula at AttentionOptions in attention.proto. Scores of
// keys from `end` on have no meaning. Sets `slope` to the derivative of the
// score with respect to the dot product.
template <class Bias>
HWY_INLINE Vec AdjustVector(const RowAdjustment& row, int64_t j, int64_t end,
                            Vec dot, Vec& slope) {
  slope = hn::Set(kF, row.scale);
  Vec s = hn::Mul(dot, slope);
  if (row.soft_cap != 0) {
    const Vec cap = hn::Set(kF, row.soft_cap);
    const Vec t = hn::Tanh(kF, hn::Div(s, cap));
    slope = hn::Mul(slope, hn::NegMulAdd(t, t, hn::Set(kF, 1.0F)));
    s = hn::Mul(cap, t);
  }
  if (row.slope != 0) {
    HWY_ALIGN float distance[kLaneCount];
    for (int64_t i = 0; i < kLanes; ++i) {
      distance[i] = static_cast<float>(row.distance - j - i);
    }
    s = hn::NegMulAdd(hn::Set(kF, row.slope), hn::Abs(hn::Load(kF, distance)),
                      s);
  }
  if (row.bias != nullptr) {
    s = hn::Add(s, LoadBroadcast<Bias>(row.bias, row.bias_stride, j, end));
  }
  return s;
}

// Replaces the dot products of keys begin <= j < end by scores, in whole SIMD
// vectors.
template <class Bias>
void AdjustRow(const RowAdjustment& row, int64_t begin, int64_t end,
               float* HWY_RESTRICT scores) {
  for (int64_t j = begin; j < end; j += kLanes) {
    Vec slope;
    hn::Store(AdjustVector<Bias>(row, j, end, hn::Load(kF, scores + j), slope),
              kF, scores + j);
  }
}

// Sets the scores of keys that the row does not see to -inf. Returns the
// largest score of each lane, or -inf.
inline Vec HideRow(const uint8_t* visible, int64_t begin, int64_t end,
                   float* HWY_RESTRICT scores) {
  const Vec hidden = hn::Set(kF, kMinusInfinity);
  Vec max = hidden;
  for (int64_t j = begin; j < end; j += kLanes) {
    const Vec s = hn::IfThenElse(LoadVisible(visible, j),
                                 hn::Load(kF, scores + j), hidden);
    hn::Store(s, kF, scores + j);
    max = hn::Max(max, s);
  }
  return max;
}

// Returns the largest score of each lane.
inline Vec RowMax(const float* scores, int64_t begin, int64_t end) {
  Vec max = hn::Set(kF, kMinusInfinity);
  Vec other = max;
  int64_t j = begin;
  for (; j + kLanes < end; j += 2 * kLanes) {
    max = hn::Max(max, hn::Load(kF, scores + j));
    other = hn::Max(other, hn::Load(kF, scores + j + kLanes));
  }
  if (j < end) max = hn::Max(max, hn::Load(kF, scores + j));
  return hn::Max(max, other);
}

// Returns 2^x for a single number x <= 127.5, as Exp2Bounded does.
inline float Exp2(float x) {
  return hn::GetLane(Exp2Bounded(kF, hn::Set(kF, x)));
}

// How many vectors of weights are added up side by side. Their sums do not
// depend on one another, so the processor computes them at the same time. If
// vectors are short, many sums also mean fewer additions in each, and so a
// smaller rounding error.
inline constexpr int64_t kSums = kLanes == 1 ? 16 : 4;

// Writes the weights of a SIMD vector of keys over their scores. Operand says
// how:
//   kF32, kRoundedF32  one word for each weight
//   kBf16     pairs of keys, which fill the first half of the row
//   kBf16x3   three times that: the first term in the first half, the other
//             terms after the scores. A word holds two keys that are a vector
//             apart, because that needs no shuffle.
template <Operand kOperand>
HWY_INLINE void StoreWeights(Vec p, int64_t j, float* scores) {
  if constexpr (kOperand == Operand::kF32) {
    hn::Store(p, kF, scores + j);
  } else if constexpr (kOperand == Operand::kRoundedF32) {
    hn::Store(RoundToBf16(kF, p), kF, scores + j);
  } else {
    // A bf16 weight takes two bytes and its f32 score four, so writing weights
    // from front to back never overwrites a score that is still to be read.
    AsBf16::Store(kF, p, reinterpret_cast<uint16_t*>(scores) + j);
  }
}

// Does the same for two vectors of weights. `term_words` is the number of words
// from one bf16 term of a weight to the next.
template <Operand kOperand>
HWY_INLINE void StoreTwoWeights(Vec low, Vec high, int64_t j, float* scores,
                                [[maybe_unused]] int64_t term_words) {
  if constexpr (kOperand == Operand::kBf16) {
    StoreNativeBf16(kF, low, high, reinterpret_cast<uint16_t*>(scores) + j);
  } else if constexpr (kOperand == Operand::kBf16x3) {
    const Bf16Terms<kBf16Terms, Floats> lows(kF, low);
    const Bf16Terms<kBf16Terms, Floats> highs(kF, high);
    ATTND_UNROLL
    for (int i = 0; i < kBf16Terms; ++i) {
      hn::Store(UpperHalves(kF, lows.term[i], highs.term[i]), kF,
                scores + i * term_words + j / 2);
    }
  } else {
    StoreWeights<kOperand>(low, j, scores);
    StoreWeights<kOperand>(high, j + kLanes, scores);
  }
}

// Does what StoreTwoWeights does for the last vector of weights, if the number
// of vectors is odd.
template <Operand kOperand>
HWY_INLINE void StoreLastWeights(Vec p, int64_t j, float* scores,
                                 int64_t term_words) {
  if constexpr (kOperand == Operand::kBf16x3) {
    StoreTwoWeights<kOperand>(p, hn::Zero(kF), j, scores, term_words);
  } else {
    StoreWeights<kOperand>(p, j, scores);
  }
}

// Replaces scores[j] by the weight 2^((scores[j] - max) * c), for whole SIMD
// vectors from `begin`, which is a multiple of kSums vectors, to `end`. If
// kMasked, keys that the row does not see get 0. Returns the sum of the
// weights, lane by lane. Hidden keys add nothing, so the sum does not depend on
// how many of them are between `begin` and `end`.
template <Operand kOperand, bool kMasked>
Vec Exponentiate(float* scores, [[maybe_unused]] const uint8_t* visible,
                 int64_t begin, int64_t end, float c, float max,
                 int64_t term_words) {
  const Vec scale = hn::Set(kF, c);
  const Vec top = hn::Set(kF, max);
  Vec sums[kSums];
  ATTND_UNROLL
  for (Vec& sum : sums) sum = hn::Zero(kF);
  const auto weigh = [&](int64_t j) HWY_ATTR {
    const Vec x = hn::Mul(hn::Sub(hn::Load(kF, scores + j), top), scale);
    constexpr bool kSplits = kOperand == Operand::kBf16x3;
    Vec p = Exp2Bounded<!kSplits>(kF, x);
    if constexpr (kSplits) {
      // Small weights become 0, so that no bf16 term is denormal, which would
      // cost a hundred cycles. NaN stays NaN.
      p = hn::IfThenZeroElse(hn::Lt(x, hn::Set(kF, -100.0F)), p);
    }
    if constexpr (kMasked) {
      return hn::IfThenElseZero(LoadVisible(visible, j), p);
    } else {
      return p;
    }
  };
  int64_t j = begin;
  for (; j + (kSums - 1) * kLanes < end; j += kSums * kLanes) {
    Vec p[kSums];
    ATTND_UNROLL
    for (int64_t i = 0; i < kSums; ++i) p[i] = weigh(j + i * kLanes);
    ATTND_UNROLL
    for (int64_t i = 0; i < kSums; i += 2) {
      StoreTwoWeights<kOperand>(p[i], p[i + 1], j + i * kLanes, scores,
                                term_words);
      sums[i] = hn::Add(sums[i], p[i]);
      sums[i + 1] = hn::Add(sums[i + 1], p[i + 1]);
    }
  }
  ATTND_UNROLL
  for (int64_t i = 0; i < kSums; i += 2) {
    if (j >= end) break;
    const Vec low = weigh(j);
    sums[i] = hn::Add(sums[i], low);
    if (j + kLanes < end) {
      const Vec high = weigh(j + kLanes);
      sums[i + 1] = hn::Add(sums[i + 1], high);
      StoreTwoWeights<kOperand>(low, high, j, scores, term_words);
    } else {
      StoreLastWeights<kOperand>(low, j, scores, term_words);
    }
    j += 2 * kLanes;
  }
  ATTND_UNROLL
  for (int64_t step = kSums / 2; step > 0; step /= 2) {
    ATTND_UNROLL
    for (int64_t i = 0; i < step; ++i) {
      sums[i] = hn::Add(sums[i], sums[i + step]);
    }
  }
  return sums[0];
}

// Does what Exponentiate does for a row in which a score is +inf. The weight of
// that key is +inf, the weight of a NaN score is NaN, and all other weights are
// 0. The row's output becomes NaN and its lse +inf, as the formula of attention
// says.
template <Operand kOperand>
Vec ExponentiateInfinite(float* scores, const uint8_t* visible, int64_t begin,
                         int64_t end, float c, int64_t term_words) {
  float sum = 0;
  for (int64_t j = begin; j < end; ++j) {
    const bool vanishes = scores[j] < std::numeric_limits<float>::infinity() ||
                          (visible != nullptr && !IsVisible(visible, j));
    scores[j] = vanishes ? 0.0F : c * scores[j];
    sum += scores[j];
  }
  for (int64_t j = begin; j < end; j += 2 * kLanes) {
    const Vec low = hn::Load(kF, scores + j);
    if (j + kLanes < end) {
      StoreTwoWeights<kOperand>(low, hn::Load(kF, scores + j + kLanes), j,
                                scores, term_words);
    } else {
      StoreLastWeights<kOperand>(low, j, scores, term_words);
    }
  }
  return hn::IfThenElseZero(FirstLanes(1), hn::Set(kF, sum));
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
