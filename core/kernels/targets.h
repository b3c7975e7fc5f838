// Which instruction sets are compiled in, and the functions of each. For files
// that foreach_target.h compiles once a target; comes after it.
#ifndef ATTND_CORE_KERNELS_TARGETS_H_
#define ATTND_CORE_KERNELS_TARGETS_H_

#include "core/machine.h"
#include "hwy/highway.h"

#if HWY_TARGETS & HWY_AVX3
#define ATTND_AVX512(NAME) (&N_AVX3::NAME)
#else
#define ATTND_AVX512(NAME) nullptr
#endif

#if HWY_TARGETS & HWY_AVX2
#define ATTND_AVX2(NAME) (&N_AVX2::NAME)
#else
#define ATTND_AVX2(NAME) nullptr
#endif

// Missing where the compiler's flags let all code use one of the others, since
// Highway leaves out what lies below it.
#if HWY_TARGETS & HWY_SCALAR
#define ATTND_HAS_SCALAR 1
#define ATTND_SCALAR(NAME) (&N_SCALAR::NAME)
#else
#define ATTND_HAS_SCALAR 0
#define ATTND_SCALAR(NAME) nullptr
#endif

// A pointer to the function NAME as it was compiled for ISA, one of
// SupportedIsas(). bf16 products have no target of their own.
#define ATTND_FUNCTION(ISA, NAME)                            \
  ::attnd::FunctionOf<decltype(&HWY_STATIC_DISPATCH(NAME))>( \
      ISA, ATTND_AVX512(NAME), ATTND_AVX2(NAME), ATTND_SCALAR(NAME))

namespace attnd {

template <class Function>
Function FunctionOf(Isa isa, Function avx512, Function avx2, Function scalar) {
  const Isa set = F32Isa(isa);
  return set == Isa::kAvx512 ? avx512 : set == Isa::kAvx2 ? avx2 : scalar;
}

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_TARGETS_H_
