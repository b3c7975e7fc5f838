// Computes 2^x for vectors.
#if defined(ATTND_CORE_KERNELS_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_EXP2_INL_H_
#undef ATTND_CORE_KERNELS_EXP2_INL_H_
#else
#define ATTND_CORE_KERNELS_EXP2_INL_H_
#endif

#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Returns 2^x for x <= 127.5, within 2 ulp. Returns 0 instead of a denormal
// result (at the limit, x may count as half an ulp larger or smaller). NaN
// stays NaN. If kClamps is false, x must be at least -127; otherwise the result
// is undefined.
//
// Let x = n + f with an integer n and |f| <= 1/2. Adding 1.5 * 2^23 + 127 to x
// leaves n + 127 in the low bits of the mantissa; shifting these to the place
// of the exponent gives 2^n. The polynomial of degree 5 is a minimax fit of 2^f
// in relative error with 2^0 = 1 exactly. Its coefficients are adjusted for the
// rounding of f32 (1.95 ulp at worst).
template <bool kClamps = true, class D>
HWY_INLINE hn::Vec<D> Exp2Bounded(D d, hn::Vec<D> x) {
  const hn::RebindToUnsigned<D> du;
  if constexpr (kClamps) {
    const auto lowest = hn::Set(d, -127.0f);
    // Each of these gives NaN if x is NaN.
#if ATTND_WIDE && HWY_ARCH_X86
    x = hn::Max(lowest, x);
#elif ATTND_WIDE && HWY_ARCH_ARM_A64
    // hn::Max is another instruction here, which drops NaN.
    x = hn::Vec<D>(vmaxq_f32(lowest.raw, x.raw));
#else
    x = hn::IfThenElse(hn::Lt(x, lowest), lowest, x);
#endif
  }
  const auto magic = hn::Set(d, 12582912.0f + 127.0f);
  const auto shifted = hn::Add(x, magic);
  const auto f = hn::Sub(x, hn::Sub(shifted, magic));
  auto p = hn::Set(d, 1.326484722085297e-3f);
  p = hn::MulAdd(p, f, hn::Set(d, 9.671485982835293e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.550733581185341e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.402225136756897e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.931470036506653e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto power =
      hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted)));
  return hn::Mul(p, power);
}

// Returns 2^x for any x, and inf above 127.5.
template <class D>
HWY_INLINE hn::Vec<D> Exp2Unbounded(D d, hn::Vec<D> x) {
  const auto highest = hn::Set(d, 128.0f);
  return Exp2Bounded(d, hn::IfThenElse(hn::Gt(x, highest), highest, x));
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
