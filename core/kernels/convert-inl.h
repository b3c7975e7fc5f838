// Converts elements of any type to f32 and back, a SIMD vector at a time.
#if defined(ATTND_CORE_KERNELS_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_CONVERT_INL_H_
#undef ATTND_CORE_KERNELS_CONVERT_INL_H_
#else
#define ATTND_CORE_KERNELS_CONVERT_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/half_float.h"
#include "core/attention_params.h"
#include "core/kernels/vectors-inl.h"
#include "core/kv_rows.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// AsF32, AsF16 and AsBf16 convert elements of one type to f32 and back.
// `Element` is the type in memory. Load() is not static because a future type
// may need more than the element itself, for example a scale.
struct AsF32 {
  using Element = float;
  template <class D>
  HWY_INLINE hn::Vec<D> Load(D d, const Element* from) const {
    return hn::LoadU(d, from);
  }
  template <class D>
  static HWY_INLINE void Store(D d, hn::Vec<D> x, Element* to) {
    hn::StoreU(x, d, to);
  }
};

struct AsF16 {
  using Element = uint16_t;
#if ATTND_WIDE
  template <class D>
  HWY_INLINE hn::Vec<D> Load(D d, const Element* from) const {
    const hn::Rebind<hwy::float16_t, D> d16;
    return hn::PromoteTo(
        d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
  }
  template <class D>
  static HWY_INLINE void Store(D /*d*/, hn::Vec<D> x, Element* to) {
    const hn::Rebind<hwy::float16_t, D> d16;
    hn::StoreU(hn::DemoteTo(d16, x), d16,
               reinterpret_cast<hwy::float16_t*>(to));
  }
#else
  // Highway's own f16 conversions for its scalar target truncate instead of
  // rounding, and get infinities wrong.
  template <class D>
  HWY_INLINE hn::Vec<D> Load(D d, const Element* from) const {
    return hn::Set(d, FloatFromF16(*from));
  }
  template <class D>
  static HWY_INLINE void Store(D /*d*/, hn::Vec<D> x, Element* to) {
    *to = F16FromFloat(hn::GetLane(x));
  }
#endif
};

// Rounds each lane to the nearest bf16, ties to even, and returns it as an f32
// whose lower 16 bits are 0. NaN stays NaN.
template <class D>
HWY_INLINE hn::Vec<D> RoundToBf16(D d, hn::Vec<D> x) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFU)));
  const auto upper = hn::Set(du, 0xFFFF0000U);
  const auto nan = hn::Or(bits, hn::Set(du, 0x00400000U));
  return hn::BitCast(
      d, hn::And(upper, hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), nan,
                                       rounded)));
}

struct AsBf16 {
  using Element = uint16_t;
  template <class D>
  HWY_INLINE hn::Vec<D> Load(D d, const Element* from) const {
    const hn::RebindToUnsigned<D> du;
    const hn::Rebind<uint16_t, D> d16;
    return hn::BitCast(
        d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, from))));
  }
  template <class D>
  static HWY_INLINE void Store(D d, hn::Vec<D> x, Element* to) {
    const hn::RebindToSigned<D> di;
    const hn::Rebind<uint16_t, D> d16;
    const hn::RebindToUnsigned<D> du;
    const auto upper = hn::ShiftRight<16>(hn::BitCast(du, RoundToBf16(d, x)));
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, upper)), d16, to);
  }
};

// Rounds the numbers of two vectors to bf16 and stores them one after the
// other, those of `low` first. Denormal numbers may become 0.
template <class D>
HWY_INLINE void StoreNativeBf16(D d, hn::Vec<D> low, hn::Vec<D> high,
                                uint16_t* to) {
#if HWY_TARGET == HWY_AVX3
  // Highway 1.0.3 has no operation for this instruction.
  hn::Vec<D> pairs;
  asm("vcvtne2ps2bf16 %2, %1, %0"
      : "=v"(pairs.raw)
      : "v"(high.raw), "v"(low.raw));
  hn::StoreU(pairs, d, reinterpret_cast<float*>(to));
#else
  AsBf16::Store(d, low, to);
  AsBf16::Store(d, high, to + hn::MaxLanes(d));
#endif
}

// Splits x into kTerms bf16 numbers, each held as an f32. A single term is x
// rounded to bf16. If there are several terms, each takes the upper eight
// significant bits of what the terms before it leave. The sum of three terms is
// x exactly, except for NaN, infinities, and terms that would be denormal.
template <int kTerms, class D>
struct Bf16Terms {
  HWY_INLINE Bf16Terms(D d, hn::Vec<D> x) {
    const auto upper =
        hn::BitCast(d, hn::Set(hn::RebindToUnsigned<D>(), 0xFFFF0000U));
    for (int t = 0; t + 1 < kTerms; ++t) {
      term[t] = hn::And(x, upper);
      x = hn::Sub(x, term[t]);
    }
    term[kTerms - 1] = kTerms == 1 ? RoundToBf16(d, x) : x;
  }
  hn::Vec<D> term[static_cast<size_t>(kTerms)];
};

// Returns words that hold two bf16 each: the upper half of `first` in the lower
// half of the word, and the upper half of `second` in the upper half.
template <class D>
HWY_INLINE hn::Vec<D> UpperHalves(D d, hn::Vec<D> first, hn::Vec<D> second) {
  const hn::RebindToUnsigned<D> du;
  const auto upper = hn::And(hn::BitCast(du, second), hn::Set(du, 0xFFFF0000U));
  return hn::BitCast(d,
                     hn::Or(hn::ShiftRight<16>(hn::BitCast(du, first)), upper));
}

// Loads `count` elements from `from` into the first lanes, and 0 into the other
// lanes. Reads no memory after these elements.
template <class As, class D>
HWY_INLINE hn::Vec<D> LoadFirst(As as, D d, const typename As::Element* from,
                                size_t count) {
  HWY_ALIGN typename As::Element lanes[hn::MaxLanes(D())] = {};
  std::memcpy(lanes, from, count * sizeof(lanes[0]));
  return as.Load(d, lanes);
}

template <class As, class D>
HWY_INLINE void StoreFirst(D d, hn::Vec<D> x, typename As::Element* to,
                           size_t count) {
  HWY_ALIGN typename As::Element lanes[hn::MaxLanes(D())];
  As::Store(d, x, lanes);
  std::memcpy(to, lanes, count * sizeof(lanes[0]));
}

// Where rows of elements of one type lie, and how to convert the elements.
template <class As>
struct RowReader {
  using Element = typename As::Element;

  // Returns the address of element `d` of row `row`.
  const Element* At(int64_t row, int64_t d) const {
    return first + row * stride + d;
  }
  // Returns a reader whose row 0 begins with element `d` of row `row`.
  RowReader From(int64_t row, int64_t d) const {
    return {At(row, d), stride, as};
  }

  const Element* first;  // row 0
  int64_t stride;        // elements from a row to the next
  [[no_unique_address]] As as = {};
};

// Calls `visit` with the AsF32, AsF16 or AsBf16 that stands for `type`.
template <class Visitor>
HWY_INLINE void VisitType(DataType type, const Visitor& visit) {
  switch (type) {
    case DataType::kF32:
      return visit(AsF32());
    case DataType::kF16:
      return visit(AsF16());
    case DataType::kBF16:
      return visit(AsBf16());
    case DataType::kBool:
      return;  // AttentionProblem refuses this type
  }
}

// Returns a reader of `rows`, whose elements must have the type that As reads.
// If a type needs more than its elements, for example a scale, this is the
// place to pass it from `rows` to `as`.
template <class As>
HWY_INLINE RowReader<As> ReaderOf(const KvRows& rows) {
  using Element = typename As::Element;
  return {reinterpret_cast<const Element*>(rows.first),
          rows.stride_bytes / static_cast<int64_t>(sizeof(Element))};
}

// Calls `visit` with a reader of `rows`.
template <class Visitor>
HWY_INLINE void VisitReader(const KvRows& rows, const Visitor& visit) {
  VisitType(rows.type, [&](auto as) { visit(ReaderOf<decltype(as)>(rows)); });
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
