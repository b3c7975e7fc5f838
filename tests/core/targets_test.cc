// Checks for which of Highway's targets the kernels of each instruction set are
// compiled.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/core/targets_test.cc"
#include "hwy/foreach_target.h"
// Highway must be included after foreach_target.
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

#include <cstdlib>
#include <map>
#include <string>

namespace attnd {
namespace {

#define ATTND_TARGET_OF_ROW(ARG, ISA, NAME, TARGET, ...) {Isa::ISA, TARGET},
const std::map<Isa, int64_t>& Targets() {
  static const std::map<Isa, int64_t> targets = {
      ATTND_VECTOR_ISAS(ATTND_TARGET_OF_ROW, )};
  return targets;
}

TEST(TargetsTest, EveryIsaHasItsTarget) {
  for (const Isa isa : SupportedIsas()) {
    const auto target = ATTND_FUNCTION(isa, Target);
    const auto kernel_isa = ATTND_FUNCTION(isa, KernelIsa);
    EXPECT_EQ(target(), Targets().at(F32Isa(isa))) << IsaName(isa);
    EXPECT_EQ(kernel_isa(), F32Isa(isa)) << IsaName(isa);
  }
}

// Under an emulator, the test is told which sets the emulated processor has.
TEST(TargetsTest, SupportedSetsAreThoseOfTheProcessor) {
  const char* const expected = std::getenv("ATTND_EXPECTED_ISAS");
  if (expected == nullptr) GTEST_SKIP() << "the processor is not known";
  std::string names;
  for (const Isa isa : SupportedIsas()) {
    names += std::string(names.empty() ? "" : ",") + std::string(IsaName(isa));
  }
  EXPECT_EQ(names, expected);
  EXPECT_EQ(IsaName(FastestIsa()), IsaName(SupportedIsas().front()));
}

// This holds for all targets that this version of Highway has.
TEST(TargetsTest, NoOtherTargetIsCompiled) {
  int64_t of_rows = 0;
  for (const auto& [isa, target] : Targets()) of_rows |= target;
  EXPECT_EQ(HWY_TARGETS & ~of_rows, 0);
#if HWY_ARCH_ARM_A64
  EXPECT_EQ(HWY_TARGETS, ATTND_NEON);
#endif
#if HWY_ARCH_X86_64 && !defined(__AVX2__) && !defined(HWY_COMPILE_ONLY_STATIC)
  EXPECT_EQ(HWY_TARGETS, HWY_SCALAR | HWY_AVX2 | HWY_AVX3);
#endif
}

}  // namespace
}  // namespace attnd
#endif  // HWY_ONCE
