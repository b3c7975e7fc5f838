#include "client/attnctl/bench_forecast.h"

#include <gtest/gtest.h>

namespace attnd::attnctl {
namespace {

client::BenchmarkProgress Report(double fraction,
                                 std::optional<double> seconds_left = {}) {
  return {.phase = "flash", .fraction = fraction, .seconds_left = seconds_left};
}

TEST(BenchForecastTest, AddsUpTheBenchmarksOfASweep) {
  BenchForecast forecast({10, 20, 40}, /*power=*/2);
  // The three take 1 + 4 + 16 times as long as the first one.
  BenchForecast::Progress now = forecast.At(1, Report(0.5));
  EXPECT_DOUBLE_EQ(now.fraction, 0.5 / 21);
  EXPECT_FALSE(now.seconds_left);
  now = forecast.At(2, Report(0.5, 2));
  EXPECT_DOUBLE_EQ(*now.seconds_left, 2 + 4 * 4 + 4 * 16);
  EXPECT_DOUBLE_EQ(now.fraction, 2.0 / (2 + 82));
  // It took 4 s, of which flash and naive attention took 5 * 0.6 s. So the
  // next one takes 4 * 3 + 2 * 1 s, and the last one 16 * 3 + 4 * 1 s.
  client::BenchmarkResult first;
  first.naive_time_ms = 500;
  first.flash_time_ms = 100;
  first.repetitions = 5;
  forecast.End(4, first);
  now = forecast.At(0, Report(0));
  EXPECT_DOUBLE_EQ(*now.seconds_left, 14 + 52);
  EXPECT_DOUBLE_EQ(now.fraction, 4.0 / 70);
  now = forecast.At(4, Report(0.1));
  EXPECT_DOUBLE_EQ(*now.seconds_left, 10 + 52);
  // The server knows better.
  now = forecast.At(4, Report(0.3, 6));
  EXPECT_DOUBLE_EQ(*now.seconds_left, 6 + 52);
  // The second one took 10 s, with naive attention not fitting.
  client::BenchmarkResult second;
  second.flash_time_ms = 1600;
  second.repetitions = 5;
  forecast.End(10, second);
  now = forecast.At(1, Report(0));
  EXPECT_DOUBLE_EQ(*now.seconds_left, 8 * 4 + 2 * 2 - 1);
  EXPECT_DOUBLE_EQ(now.fraction, 15.0 / 50);
  // Less is done than it seemed, but the fraction does not fall.
  now = forecast.At(2, Report(0.1, 1000));
  EXPECT_DOUBLE_EQ(*now.seconds_left, 1000);
  EXPECT_DOUBLE_EQ(now.fraction, 15.0 / 50);
}

TEST(BenchForecastTest, GoesOnBetweenReports) {
  BenchForecast::Progress now = Advanced({0.5, 8}, 2);
  EXPECT_DOUBLE_EQ(*now.seconds_left, 6);
  EXPECT_DOUBLE_EQ(now.fraction, 0.625);
  now = Advanced({0.5, 8}, 20);
  EXPECT_DOUBLE_EQ(*now.seconds_left, 0);
  EXPECT_DOUBLE_EQ(now.fraction, 1);
  now = Advanced({0.5, std::nullopt}, 20);
  EXPECT_FALSE(now.seconds_left);
  EXPECT_DOUBLE_EQ(now.fraction, 0.5);
  EXPECT_DOUBLE_EQ(*Advanced({0.5, 0}, 20).seconds_left, 0);
}

TEST(BenchForecastTest, SaysTimesInWords) {
  EXPECT_EQ(FormatTimeLeft(0), "less than 1 s");
  EXPECT_EQ(FormatTimeLeft(0.99), "less than 1 s");
  EXPECT_EQ(FormatTimeLeft(11.6), "about 12 s");
  EXPECT_EQ(FormatTimeLeft(119), "about 119 s");
  EXPECT_EQ(FormatTimeLeft(150), "about 2 min");
  EXPECT_EQ(FormatTimeLeft(7199), "about 120 min");
  EXPECT_EQ(FormatTimeLeft(9000), "about 2.5 h");
}

}  // namespace
}  // namespace attnd::attnctl
