#include "client/attnctl/call_rate.h"

#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "tests/client/fake_server.h"
#include "tests/support/thread_limit.h"

namespace attnd::attnctl {
namespace {

TEST(CallRateTest, WithoutAThreadForEachCallerThereIsAnError) {
  client::FakeHandler handler;
  const client::FakeServer server(&handler);
  const std::vector<client::AttentionClient> clients(
      3, client::AttentionClient({.target = server.target()}));
  std::optional<testing::DefaultStackBytes> no_threads;
  const auto rate =
      MeasureCallRate({.seq_len = 2, .dimensions = 2}, clients,
                      /*shm_socket=*/"", [&](absl::string_view phase, double) {
                        if (phase == "all callers") {
                          no_threads.emplace(testing::DefaultStackBytes::kNone);
                        }
                      });
  no_threads.reset();
  EXPECT_EQ(rate.status().code(), absl::StatusCode::kResourceExhausted)
      << rate.status();
}

}  // namespace
}  // namespace attnd::attnctl
