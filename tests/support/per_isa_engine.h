// The engine for tests that run on one instruction set at a time.
#ifndef ATTND_TESTS_SUPPORT_PER_ISA_ENGINE_H_
#define ATTND_TESTS_SUPPORT_PER_ISA_ENGINE_H_

#include <gtest/gtest.h>

#include "core/attention_engine.h"
#include "core/machine.h"
#include "tests/support/attention_case.h"

namespace attnd::testing {

// The engine has two threads and uses the instruction set of the test's
// parameter.
class PerIsaEngineTest : public ::testing::TestWithParam<Isa> {
 protected:
  PerIsaEngineTest() : engine_({.threads = 2, .force_isa = GetParam()}) {}

  void Compute(AttentionCase& c) {
    c.ClearOutputs();
    const auto stats = engine_.Run(c.problem(), c.buffers());
    ASSERT_TRUE(stats.ok()) << stats.status() << " " << c.ToString();
  }

  AttentionEngine engine_;
};

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_PER_ISA_ENGINE_H_
