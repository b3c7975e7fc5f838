// The instruction sets that tests run kernels on.
#ifndef ATTND_TESTS_SUPPORT_ISAS_H_
#define ATTND_TESTS_SUPPORT_ISAS_H_

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/machine.h"

namespace attnd::testing {

// All that the machine has. Thread sanitizer makes kernels fifty times slower
// and looks only at where threads meet, which sets of one layout do alike: it
// gets one of tiles, where there are any, and one of vectors.
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
