// Which of Highway's targets each instruction set's kernels are compiled for.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/core/targets_test.cc"
#include "hwy/foreach_target.h"
// Highway must come after foreach_target.
#include "core/kernels/targets.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

int64_t Target() { return HWY_TARGET; }
Isa KernelIsa() { return kIsa; }

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>

namespace attnd {
namespace {

int64_t ExpectedTarget(Isa isa) {
  switch (F32Isa(isa)) {
    case Isa::kScalar:
      return HWY_SCALAR;
    case Isa::kAvx2:
      return HWY_AVX2;
    default:
      return HWY_AVX3;
  }
}

TEST(TargetsTest, EveryIsaHasItsTarget) {
  for (const Isa isa : SupportedIsas()) {
    EXPECT_EQ(ATTND_FUNCTION(isa, Target)(), ExpectedTarget(isa))
        << IsaName(isa);
    EXPECT_EQ(ATTND_FUNCTION(isa, KernelIsa)(), F32Isa(isa)) << IsaName(isa);
  }
}

// Whatever targets this version of Highway has.
TEST(TargetsTest, NoOtherTargetIsCompiled) {
  EXPECT_EQ(HWY_TARGETS & ~(HWY_SCALAR | HWY_AVX2 | HWY_AVX3), 0);
#if HWY_ARCH_X86_64 && !defined(__AVX2__) && !defined(HWY_COMPILE_ONLY_STATIC)
  EXPECT_EQ(HWY_TARGETS, HWY_SCALAR | HWY_AVX2 | HWY_AVX3);
#endif
}

}  // namespace
}  // namespace attnd
#endif  // HWY_ONCE
