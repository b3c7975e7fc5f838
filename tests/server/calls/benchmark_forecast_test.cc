#include "server/calls/benchmark_forecast.h"

#include <gtest/gtest.h>

namespace attnd::server {
namespace {

using Seconds = BenchmarkForecast::Seconds;
using enum BenchmarkPhase;

TEST(BenchmarkForecastTest, CountsWhatIsLeftFromWhatHasRun) {
  BenchmarkForecast forecast({.repetitions = 2, .peaks = 2});
  v1::BenchmarkProgress now = forecast.Begin(kPrepare, Seconds(0));
  EXPECT_EQ(now.phase(), "prepare");
  EXPECT_EQ(now.fraction(), 0);
  forecast.Expect(kVerify, Seconds(1));
  now = forecast.Begin(kPeak, Seconds(1));
  EXPECT_EQ(now.phase(), "peak");
  EXPECT_EQ(now.fraction(), 0);
  forecast.Expect(kNaive, Seconds(10));
  forecast.Expect(kFlash, Seconds(2));
  // Left: a peak of 1 s, twice 10 s and 2 s, and 1 s to verify.
  now = forecast.Begin(kNaive, Seconds(2));
  EXPECT_EQ(now.phase(), "naive");
  EXPECT_DOUBLE_EQ(now.fraction(), 2.0 / (2 + 26));
  EXPECT_FALSE(now.has_seconds_left());
  // Naive attention took 4 s. Left: 1, 4, twice 2, and 1 s.
  now = forecast.Begin(kFlash, Seconds(6));
  EXPECT_EQ(now.phase(), "flash");
  EXPECT_DOUBLE_EQ(now.fraction(), 6.0 / (6 + 10));
  EXPECT_FALSE(now.has_seconds_left());
  // Flash attention took 1 s. Left: 1, 4, 1, and 1 s.
  now = forecast.Begin(kPeak, Seconds(7));
  EXPECT_DOUBLE_EQ(now.fraction(), 0.5);
  EXPECT_DOUBLE_EQ(now.seconds_left(), 7);
  now = forecast.Begin(kNaive, Seconds(8));
  EXPECT_DOUBLE_EQ(now.seconds_left(), 6);
  // Naive attention took 6 s, which is more than before, so the fraction
  // grows by less.
  now = forecast.Begin(kFlash, Seconds(14));
  EXPECT_DOUBLE_EQ(now.seconds_left(), 2);
  EXPECT_DOUBLE_EQ(now.fraction(), 14.0 / 16);
  now = forecast.Begin(kVerify, Seconds(15));
  EXPECT_EQ(now.phase(), "verify");
  EXPECT_DOUBLE_EQ(now.seconds_left(), 1);
  EXPECT_DOUBLE_EQ(now.fraction(), 15.0 / 16);
}

TEST(BenchmarkForecastTest, TheLimitsEndWhatIsLeft) {
  BenchmarkForecast forecast({.repetitions = 100,
                              .peaks = 1,
                              .measuring_limit = Seconds(9),
                              .limit = Seconds(10)});
  forecast.Begin(kPrepare, Seconds(0));
  forecast.Expect(kVerify, Seconds(0.5));
  forecast.Begin(kPeak, Seconds(0));
  forecast.Expect(kNaive, Seconds(2));
  forecast.Expect(kFlash, Seconds(1));
  forecast.Begin(kNaive, Seconds(1));
  forecast.Begin(kFlash, Seconds(3));
  // 99 more repetitions do not fit: 5 s until the measurements end, and half a
  // second to verify.
  v1::BenchmarkProgress now = forecast.Begin(kNaive, Seconds(4));
  EXPECT_DOUBLE_EQ(now.seconds_left(), 5.5);
  EXPECT_DOUBLE_EQ(now.fraction(), 4 / 9.5);
  now = forecast.Begin(kVerify, Seconds(9));
  EXPECT_DOUBLE_EQ(now.seconds_left(), 0.5);

  BenchmarkForecast slow({.repetitions = 1,
                          .peaks = 1,
                          .measuring_limit = Seconds(9),
                          .limit = Seconds(10)});
  slow.Begin(kPrepare, Seconds(0));
  slow.Expect(kVerify, Seconds(60));
  slow.Begin(kFlash, Seconds(1));
  EXPECT_DOUBLE_EQ(slow.Begin(kVerify, Seconds(9.5)).seconds_left(), 0.5);
}

TEST(BenchmarkForecastTest, TheFractionNeitherFallsNorReachesOne) {
  BenchmarkForecast forecast({.repetitions = 2, .peaks = 1});
  forecast.Begin(kPrepare, Seconds(0));
  forecast.Begin(kPeak, Seconds(1));
  // Nothing is expected to take time.
  EXPECT_DOUBLE_EQ(forecast.Begin(kNaive, Seconds(2)).fraction(), 0.999);
  forecast.Begin(kFlash, Seconds(100));
  const v1::BenchmarkProgress now = forecast.Begin(kNaive, Seconds(110));
  EXPECT_DOUBLE_EQ(now.fraction(), 0.999);
  EXPECT_DOUBLE_EQ(now.seconds_left(), 98 + 10);
}

}  // namespace
}  // namespace attnd::server
