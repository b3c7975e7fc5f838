// The SIMD vector types and the Geometry of one instruction set (Highway calls
// it a target), which all its kernels share. Highway compiles the kernels, and
// with them this and the other files that end in -inl.h, once for each target.
#if defined(ATTND_CORE_KERNELS_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_VECTORS_INL_H_
#undef ATTND_CORE_KERNELS_VECTORS_INL_H_
#else
#define ATTND_CORE_KERNELS_VECTORS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/geometry.h"
#include "core/kernels/targets.h"
#include "hwy/highway.h"

// Write this before every loop over the rows or vectors of a microkernel. The
// compiler keeps the arrays of sums in registers only if it unrolls all these
// loops.
#undef ATTND_UNROLL
#define ATTND_UNROLL HWY_PRAGMA(GCC unroll 16)

// Whether this target has SIMD vectors of four floats or more. The code that
// packs and adds up is written for these; without them, kernels compute one
// number at a time.
#undef ATTND_WIDE
#define ATTND_WIDE (HWY_TARGET != HWY_SCALAR)

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr Isa kIsa = IsaOfTarget(HWY_TARGET);
inline constexpr Geometry kGeometry = GeometryOf(kIsa);
inline constexpr auto kRows = static_cast<size_t>(kGeometry.rows);
inline constexpr auto kVectors = static_cast<size_t>(kGeometry.vectors);
inline constexpr int64_t kLanes = kGeometry.lanes;
inline constexpr auto kLaneCount = static_cast<size_t>(kLanes);
inline constexpr int64_t kPanelKeys = kGeometry.panel_keys();

// These types have exactly the lanes of kGeometry, even if the processor has
// wider vectors.
using Floats = hn::CappedTag<float, kLaneCount>;
using Vec = hn::Vec<Floats>;
using LaneMask = hn::Mask<Floats>;
inline constexpr Floats kF;
inline constexpr hn::RebindToUnsigned<Floats> kU;
using Bits = hn::Vec<decltype(hn::RebindToUnsigned<Floats>())>;

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Returns the bits of x without the sign. As integers they have the order of
// the absolute values, with infinity and NaN last.
HWY_INLINE Bits Magnitude(Vec x) { return hn::BitCast(kU, hn::Abs(x)); }

// Returns a mask of the first `lanes` lanes: of none if `lanes` is negative,
// and of all if it is larger than a vector.
HWY_INLINE LaneMask FirstLanes(int64_t lanes) {
  return hn::FirstN(kF, lanes <= 0        ? size_t{0}
                        : lanes >= kLanes ? kLaneCount
                                          : static_cast<size_t>(lanes));
}

// Divides columns into groups for a microkernel and calls `visit(column,
// vectors)` for each: its first column, and its number of SIMD vectors, at most
// `most`. The groups have nearly equal widths, because a microkernel is slow
// with only one vector: each sum has to wait for the one before.
template <class Visitor>
HWY_INLINE void VisitColumns(int64_t columns, int64_t most,
                             const Visitor& visit) {
  const int64_t vectors = (columns + kLanes - 1) / kLanes;
  int64_t done = 0;
  for (int64_t groups = (vectors + most - 1) / most; groups > 0; --groups) {
    const int64_t count = (vectors - done + groups - 1) / groups;
    visit(done * kLanes, count);
    done += count;
  }
}
template <class Visitor>
HWY_INLINE void VisitColumns(int64_t columns, const Visitor& visit) {
  VisitColumns(columns, int64_t{kVectors}, visit);
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
