#include "core/work_rate.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <random>

namespace attnd {
namespace {

using std::chrono::duration;
using std::chrono::nanoseconds;

nanoseconds Seconds(double seconds) {
  return nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

double SecondsOf(nanoseconds time) { return duration<double>(time).count(); }

TEST(WorkRateTest, AFirstJobIsExpectedToRunAtAPlausibleSpeed) {
  const WorkRate rate;
  const double seconds =
      SecondsOf(rate.Estimate({.operations = 1'000'000'000}));
  EXPECT_GT(seconds, 0.001);
  EXPECT_LT(seconds, 1);
}

TEST(WorkRateTest, LearnsFromOneJobAndScalesByOperations) {
  WorkRate rate;
  rate.Observe({.kind = 3, .operations = 1'000'000}, Seconds(0.002));
  EXPECT_NEAR(SecondsOf(rate.Estimate({.kind = 3, .operations = 5'000'000})),
              0.01, 1e-6);
  // Nothing better is known of another kind.
  EXPECT_NEAR(SecondsOf(rate.Estimate({.kind = 4, .operations = 1'000'000})),
              0.002, 1e-6);
}

TEST(WorkRateTest, KeepsKindsApart) {
  WorkRate rate;
  rate.Observe({.kind = 1, .operations = 1000}, Seconds(0.001));
  rate.Observe({.kind = 2, .operations = 1000}, Seconds(0.1));
  EXPECT_NEAR(SecondsOf(rate.Estimate({.kind = 1, .operations = 1000})), 0.001,
              1e-6);
  EXPECT_NEAR(SecondsOf(rate.Estimate({.kind = 2, .operations = 1000})), 0.1,
              1e-6);
}

// Jobs of all sizes, with a fixed cost and noise of 20 %.
TEST(WorkRateTest, TellsAFixedCostFromARate) {
  WorkRate rate;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> exponent(6, 9);
  std::uniform_real_distribution<double> noise(0.8, 1.2);
  const auto time = [](double operations) { return 2e-4 + operations * 3e-11; };
  for (int i = 0; i < 100; ++i) {
    const double operations = std::pow(10, exponent(random));
    rate.Observe({.operations = static_cast<int64_t>(operations)},
                 Seconds(time(operations) * noise(random)));
  }
  for (const double operations : {1e6, 1e7, 1e8, 1e9}) {
    const double estimate = SecondsOf(
        rate.Estimate({.operations = static_cast<int64_t>(operations)}));
    EXPECT_NEAR(estimate / time(operations), 1, 0.25) << operations;
  }
}

TEST(WorkRateTest, FollowsAMachineThatBecomesSlower) {
  WorkRate rate;
  for (int i = 0; i < 1000; ++i) rate.Observe({.operations = 1000}, Seconds(1));
  for (int i = 0; i < 200; ++i) rate.Observe({.operations = 1000}, Seconds(3));
  EXPECT_NEAR(SecondsOf(rate.Estimate({.operations = 1000})), 3, 0.75);
}

// A machine with other programs interrupts some jobs for long. What counts for
// the next ones is the mean.
TEST(WorkRateTest, SlowJobsCountInFull) {
  WorkRate rate;
  for (int i = 0; i < 300; ++i) {
    rate.Observe({.operations = 1000}, Seconds(i % 2 == 0 ? 1 : 3));
  }
  EXPECT_NEAR(SecondsOf(rate.Estimate({.operations = 1000})), 2, 0.2);
}

TEST(WorkRateTest, IgnoresJobsOfUnknownSize) {
  WorkRate rate;
  rate.Observe({.operations = 1000}, Seconds(1));
  rate.Observe({.operations = 0}, Seconds(100));
  EXPECT_NEAR(SecondsOf(rate.Estimate({.operations = 1000})), 1, 1e-6);
}

}  // namespace
}  // namespace attnd
