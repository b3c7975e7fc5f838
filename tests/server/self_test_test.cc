#include "server/self_test.h"

#include <gtest/gtest.h>

namespace attnd::server {
namespace {

TEST(SelfTestTest, EveryInstructionSetPasses) {
  for (const Isa isa : SupportedIsas()) {
    AttentionEngine engine({.threads = 2, .force_isa = isa});
    EXPECT_TRUE(RunSelfTest(engine).ok()) << IsaName(isa);
  }
}

}  // namespace
}  // namespace attnd::server
