// The instruction sets that kernels exist for: one row of a table for each.
#ifndef ATTND_CORE_ISA_H_
#define ATTND_CORE_ISA_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/tile_kind.h"

namespace attnd {

// To add an instruction set, add its row to one of these two tables, and its
// Highway target to core/CMakeLists.txt if it has one. docs/adr/0003 says more.

// The sets that have kernels of their own, narrowest vectors first. The Highway
// library compiles every kernel once for each `target`, and its macro
// `function` yields a pointer to a kernel's copy for that target, or a null
// pointer if the target belongs to another architecture. The numbers are the
// members of Geometry (below), in their order.
#define ATTND_VECTOR_ISAS(ROW, ARG)                                        \
  /*       isa, name, target, function, geometry */                        \
  ROW(ARG, kScalar, "scalar", HWY_SCALAR, HWY_CHOOSE_FALLBACK, 1, 2, 4, 0) \
  ROW(ARG, kNeon, "neon", ATTND_NEON, ATTND_CHOOSE_NEON, 4, 6, 4, 24)      \
  ROW(ARG, kAvx2, "avx2", HWY_AVX2, HWY_CHOOSE_AVX2, 8, 6, 2, 12)          \
  ROW(ARG, kAvx512, "avx512", HWY_AVX3, HWY_CHOOSE_AVX3, 16, 6, 4, 32)

// The sets that have instructions for bf16 products and use the kernels of
// another set, their `base`, for everything else. Each stands after its base.
// The functions `available` and `preferred` say whether this processor has the
// set, and whether the set is faster there than its base. `bf16_kind` is the
// kind of tile (core/tile_kind.h) for tensors of bf16, `f32_kind` the kind for
// every other type of element.
#define ATTND_BF16_ISAS(ROW)                                                 \
  /*  isa, name, base, available, preferred, bf16_kind, f32_kind */          \
  ROW(kAvx512Bf16, "avx512_bf16", kAvx512, HasBf16Dot, PrefersBf16Dot,       \
      kPanelBf16, kPanel)                                                    \
  ROW(kAmxBf16, "amx_bf16", kAvx512Bf16, HasAmxBf16, HasAmxBf16, kAmxBf16,   \
      kAmxBf16x3)                                                            \
  ROW(kNeonBf16, "neon_bf16", kNeon, HasBf16Dot, PrefersBf16Dot, kPanelBf16, \
      kPanel)

#define ATTND_VECTOR_ISA(QUALIFIER, ISA, ...) QUALIFIER ISA,
#define ATTND_BF16_ISA(ISA, ...) ISA,
#define ATTND_QUALIFIED_BF16_ISA(ISA, ...) Isa::ISA,
// The sets of ATTND_VECTOR_ISAS come first.
enum class Isa {
  ATTND_VECTOR_ISAS(ATTND_VECTOR_ISA, ) ATTND_BF16_ISAS(ATTND_BF16_ISA)
};

inline constexpr Isa kIsas[] = {ATTND_VECTOR_ISAS(ATTND_VECTOR_ISA, Isa::)
                                    ATTND_BF16_ISAS(ATTND_QUALIFIED_BF16_ISA)};
#undef ATTND_VECTOR_ISA
#undef ATTND_BF16_ISA
#undef ATTND_QUALIFIED_BF16_ISA

// The sizes of an instruction set's f32 microkernel, the innermost loop of a
// matrix product. It keeps rows * vectors SIMD vectors of sums in registers: 24
// of the 32 registers on AVX-512 and NEON, 12 of 16 on AVX2. The other
// registers hold vectors of the right-hand side, and one element of the
// left-hand side in every lane.
struct Geometry {
  int64_t lanes;    // floats in a vector
  int64_t rows;     // query rows of a microkernel
  int64_t vectors;  // columns of a microkernel, in vectors
  // How many SIMD vectors of sums stay in registers while a tile of few query
  // rows reads V where it lies, without packing it.
  int64_t stream_sums;

  constexpr int64_t panel_keys() const { return vectors * lanes; }
};

// What the tables above say of one instruction set.
struct IsaTraits {
  std::string_view name;  // "avx512_bf16"
  Isa f32_isa;            // the set whose f32 kernels it uses
  Geometry geometry;      // of the kernels of f32_isa
  // The kinds of tiles for tensors of bf16, and for those of any other type.
  TileKind bf16_kind = TileKind::kPanel;
  TileKind f32_kind = TileKind::kPanel;
};

constexpr IsaTraits TraitsOf(Isa isa) {
#define ATTND_VECTOR_TRAITS(ARG, ISA, NAME, TARGET, FUNCTION, ...) \
  case Isa::ISA:                                                   \
    return {NAME, Isa::ISA, {__VA_ARGS__}};
#define ATTND_BF16_TRAITS(ISA, NAME, BASE, AVAILABLE, PREFERRED, BF16, F32)  \
  case Isa::ISA:                                                             \
    return {NAME, TraitsOf(Isa::BASE).f32_isa, TraitsOf(Isa::BASE).geometry, \
            TileKind::BF16, TileKind::F32};
  switch (isa) {
    ATTND_VECTOR_ISAS(ATTND_VECTOR_TRAITS, )
    ATTND_BF16_ISAS(ATTND_BF16_TRAITS)
  }
#undef ATTND_VECTOR_TRAITS
#undef ATTND_BF16_TRAITS
  return {};
}

constexpr std::string_view IsaName(Isa isa) { return TraitsOf(isa).name; }
constexpr Isa F32Isa(Isa isa) { return TraitsOf(isa).f32_isa; }
constexpr Geometry GeometryOf(Isa isa) { return TraitsOf(isa).geometry; }

// Returns whether the kernels that are compiled for `vector_isa` must include
// tiles of `kind`. They must if any instruction set that uses these kernels
// chooses that kind.
constexpr bool HasKind(Isa vector_isa, TileKind kind) {
  if (!IsNativeBf16(kind)) return true;
  for (const Isa isa : kIsas) {
    const IsaTraits traits = TraitsOf(isa);
    if (traits.f32_isa == vector_isa &&
        (traits.bf16_kind == kind || traits.f32_kind == kind)) {
      return true;
    }
  }
  return false;
}

// Returns the instruction sets that this binary has kernels for and this
// processor supports, widest vectors first. The list is never empty. kScalar is
// missing if the compiler may use wider vectors in the whole program, because
// Highway then does not compile scalar kernels: on every 64-bit ARM, and on x86
// with flags such as -mavx2.
std::vector<Isa> SupportedIsas();

// Returns the set of SupportedIsas() that is fastest on this processor.
Isa FastestIsa();

}  // namespace attnd

#endif  // ATTND_CORE_ISA_H_
