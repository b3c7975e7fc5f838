// Says on which instruction sets tests run kernels.
#ifndef ATTND_TESTS_SUPPORT_ISAS_H_
#define ATTND_TESTS_SUPPORT_ISAS_H_

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/machine.h"

namespace attnd::testing {

// Returns all sets of this machine. Under thread sanitizer, kernels are fifty
// times slower, and only the order between threads matters, which depends on
// the layout of the tiles. So there it returns one set with tile registers, if
// the machine has one, and one set with vectors.
inline std::vector<Isa> TestedIsas() {
#if defined(__SANITIZE_THREAD__)
  const Isa widest = SupportedIsas().front();
  if (F32Isa(widest) == widest) return {widest};
  return {widest, F32Isa(widest)};
#else
  return SupportedIsas();
#endif
}

inline std::string IsaTestName(const ::testing::TestParamInfo<Isa>& isa) {
  return std::string(IsaName(isa.param));
}

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_ISAS_H_
