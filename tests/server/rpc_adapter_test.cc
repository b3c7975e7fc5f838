// What attnd takes for granted of the gRPC that it is linked with.
#include "server/rpc_adapter.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>

namespace attnd::server {
namespace {

gpr_timespec InSeconds(int64_t seconds, gpr_clock_type clock) {
  return gpr_time_add(gpr_now(clock),
                      gpr_time_from_seconds(seconds, GPR_TIMESPAN));
}

TEST(RpcAdapterTest, DeadlinesStayInOrderHoweverFar) {
  using std::chrono::seconds;
  for (const gpr_clock_type clock : {GPR_CLOCK_REALTIME, GPR_CLOCK_MONOTONIC}) {
    const SteadyTime before = std::chrono::steady_clock::now();
    const SteadyTime soon = ToSteadyTime(InSeconds(100, clock));
    EXPECT_GE(soon, before + seconds(99));
    EXPECT_LE(soon, std::chrono::steady_clock::now() + seconds(101));
    EXPECT_LT(ToSteadyTime(InSeconds(-5, clock)), before);
    EXPECT_EQ(ToSteadyTime(gpr_inf_future(clock)), SteadyTime::max());
    EXPECT_LT(ToSteadyTime(gpr_inf_past(clock)), before);
    for (const int64_t hours : {2'500'000, 5'000'000, 99'999'999}) {
      EXPECT_EQ(ToSteadyTime(InSeconds(hours * 3600, clock)),
                SteadyTime::max());
    }
  }
}

TEST(RpcAdapterTest, AMissingMessageIsTheClientsFault) {
  const auto quota =
      std::make_shared<MessageQuota>(MessageQuota::Limits{}, [](int64_t) {});
  const grpc::ByteBuffer none;
  EXPECT_EQ(TakeMessage(&none, quota).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace attnd::server
