// Finds the copy of a function for an instruction set. Highway's
// foreach_target.h compiles a file once for each instruction set (target); such
// a file includes this one after foreach_target.h.
#ifndef ATTND_CORE_KERNELS_TARGETS_H_
#define ATTND_CORE_KERNELS_TARGETS_H_

#include <cstddef>
#include <iterator>

#include "core/isa.h"
#include "hwy/highway.h"

// The NEON that every 64-bit ARM has. Highway 1.0.3 has no other, and later
// versions call another one HWY_NEON.
#ifdef HWY_NEON_WITHOUT_AES
#define ATTND_NEON HWY_NEON_WITHOUT_AES
#define ATTND_CHOOSE_NEON HWY_CHOOSE_NEON_WITHOUT_AES
#else
#define ATTND_NEON HWY_NEON
#define ATTND_CHOOSE_NEON HWY_CHOOSE_NEON
#endif

#define ATTND_FUNCTION_OF_ROW(NAME, ISA, ISA_NAME, TARGET, FUNCTION, ...) \
  FUNCTION(NAME),

// Returns a pointer to the function NAME as it was compiled for ISA, one of
// SupportedIsas(). For a set that only adds bf16 products (ATTND_BF16_ISAS),
// this is the function for F32Isa(ISA).
#define ATTND_FUNCTION(ISA, NAME)                                    \
  [](::attnd::Isa wanted) {                                          \
    using Function = decltype(&HWY_STATIC_DISPATCH(NAME));           \
    static constexpr Function kFunctions[] = {                       \
        ATTND_VECTOR_ISAS(ATTND_FUNCTION_OF_ROW, NAME)};             \
    return kFunctions[static_cast<size_t>(::attnd::F32Isa(wanted))]; \
  }(ISA)

namespace attnd {

// Returns the instruction set whose kernels Highway compiles for its `target`.
constexpr Isa IsaOfTarget(int64_t target) {
#define ATTND_ISA_OF_ROW(ARG, ISA, NAME, TARGET, ...) \
  if (target == (TARGET)) return Isa::ISA;
  ATTND_VECTOR_ISAS(ATTND_ISA_OF_ROW, )
#undef ATTND_ISA_OF_ROW
  // The compiler rejects this in a constant expression, so a target without a
  // row in the table is an error.
  return *std::end(kIsas);
}

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_TARGETS_H_
