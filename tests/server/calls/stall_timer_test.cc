#include "server/calls/stall_timer.h"

#include <gtest/gtest.h>

#include <chrono>

namespace attnd::server {
namespace {

using std::chrono::seconds;

constexpr seconds kTimeout(10);

TEST(StallTimerTest, CountsTheTimeInWhichTheClientIsWaitedFor) {
  StallTimer timer;
  SteadyTime now = std::chrono::steady_clock::now();
  EXPECT_FALSE(timer.IsOver(now, kTimeout));
  timer.Start(now);
  now += seconds(6);
  timer.Stop(now);
  now += seconds(100);
  EXPECT_FALSE(timer.IsOver(now, kTimeout));
  timer.Start(now);
  now += seconds(3);
  EXPECT_FALSE(timer.IsOver(now, kTimeout));
  now += seconds(1);
  EXPECT_TRUE(timer.IsOver(now, kTimeout));
  timer.Stop(now);
  EXPECT_FALSE(timer.IsOver(now, kTimeout));
}

TEST(StallTimerTest, BeginsAnewWhereEnoughHasMoved) {
  StallTimer timer;
  SteadyTime now = std::chrono::steady_clock::now();
  timer.Start(now);
  now += seconds(9);
  timer.SawBytes(kMinProgressBytes, now);
  now += seconds(9);
  EXPECT_FALSE(timer.IsOver(now, kTimeout));
  // These are too few bytes, and the timer must not count the earlier ones
  // again.
  timer.SawBytes(2 * kMinProgressBytes - 1, now);
  now += seconds(1);
  EXPECT_TRUE(timer.IsOver(now, kTimeout));
  timer.SawBytes(2 * kMinProgressBytes, now);
  EXPECT_FALSE(timer.IsOver(now, kTimeout));
}

TEST(StallTimerTest, CountsTheBytesOfTheNextMessageFromNone) {
  StallTimer timer;
  SteadyTime now = std::chrono::steady_clock::now();
  timer.Start(now);
  timer.SawBytes(10 * kMinProgressBytes, now);
  now += seconds(9);
  timer.SawBytes(0, now);
  now += seconds(1);
  EXPECT_TRUE(timer.IsOver(now, kTimeout));
  timer.SawBytes(kMinProgressBytes, now);
  EXPECT_FALSE(timer.IsOver(now, kTimeout));
}

TEST(StallTimerTest, BeginsAnewWhereAllIsThere) {
  StallTimer timer;
  SteadyTime now = std::chrono::steady_clock::now();
  timer.Start(now);
  now += seconds(9);
  timer.Stop(now);
  timer.Complete(now);
  timer.Start(now);
  now += seconds(9);
  EXPECT_FALSE(timer.IsOver(now, kTimeout));
}

}  // namespace
}  // namespace attnd::server
