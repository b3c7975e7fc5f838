#include "server/process/self_test.h"

#include <gtest/gtest.h>

namespace attnd::server {
namespace {

TEST(SelfTestTest, EveryInstructionSetPasses) {
  for (const Isa isa : SupportedIsas()) {
    AttentionEngine engine({.threads = 2, .force_isa = isa});
    const absl::Status status = RunSelfTest(engine);
    EXPECT_TRUE(status.ok()) << IsaName(isa) << ": " << status;
  }
}

}  // namespace
}  // namespace attnd::server
