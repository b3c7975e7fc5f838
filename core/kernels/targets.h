// Finds a function by instruction set among the copies that foreach_target.h
// makes of it. Only for files that foreach_target.h compiles once for each
// target; include this after foreach_target.h.
#ifndef ATTND_CORE_KERNELS_TARGETS_H_
#define ATTND_CORE_KERNELS_TARGETS_H_

#include <cstddef>
#include <iterator>

#include "core/isa.h"
#include "hwy/highway.h"

#define ATTND_FUNCTION_OF_ROW(NAME, ISA, ISA_NAME, TARGET, FUNCTION, ...) \
  FUNCTION(NAME),

// Returns a pointer to the function NAME as it was compiled for ISA, one of
// SupportedIsas(). A set that adds bf16 products has the functions of its f32
// set.
#define ATTND_FUNCTION(ISA, NAME)                                 \
  [](::attnd::Isa isa) {                                          \
    using Function = decltype(&HWY_STATIC_DISPATCH(NAME));        \
    static constexpr Function kFunctions[] = {                    \
        ATTND_VECTOR_ISAS(ATTND_FUNCTION_OF_ROW, NAME)};          \
    return kFunctions[static_cast<size_t>(::attnd::F32Isa(isa))]; \
  }(ISA)

namespace attnd {

// Returns the set whose kernels Highway compiles for `target`.
constexpr Isa IsaOfTarget(int64_t target) {
#define ATTND_ISA_OF_ROW(ARG, ISA, NAME, TARGET, ...) \
  if (target == (TARGET)) return Isa::ISA;
  ATTND_VECTOR_ISAS(ATTND_ISA_OF_ROW, )
#undef ATTND_ISA_OF_ROW
  // Reached in a constant expression only if a target has no row.
  return *std::end(kIsas);
}

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_TARGETS_H_
