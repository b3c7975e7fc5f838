// Predicts how long a sweep of benchmarks still takes. Reads no clock.
#ifndef ATTND_CLIENT_ATTNCTL_BENCH_FORECAST_H_
#define ATTND_CLIENT_ATTNCTL_BENCH_FORECAST_H_

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "client/types.h"

namespace attnd::attnctl {

// Adds the forecasts of the server for the benchmark that runs to those for the
// benchmarks that follow. Attention takes time in proportion to a power of the
// size that the sweep changes, and the rest of a benchmark in proportion to
// the size. Not thread-safe.
class BenchForecast {
 public:
  // `power` is 2 if attention takes four times as long for twice the size.
  BenchForecast(std::vector<double> sizes, int power);

  struct Progress {
    double fraction = 0;                 // of the whole sweep; never falls
    std::optional<double> seconds_left;  // of the whole sweep
  };
  // Returns the progress of the sweep `seconds` after the start of the
  // benchmark that runs, which has reported `progress`.
  Progress At(double seconds, const client::BenchmarkProgress& progress);

  // Call this when a benchmark has ended after `seconds`. The next one begins.
  void End(double seconds, const client::BenchmarkResult& result);

 private:
  // Returns how long a benchmark takes, according to the last one that ended.
  double SecondsOf(size_t index) const;

  const std::vector<double> sizes_;
  const int power_;
  size_t index_ = 0;              // of the benchmark that runs
  double ended_seconds_ = 0;      // of all benchmarks that have ended
  double attention_seconds_ = 0;  // of the last one, for flash and naive
  double other_seconds_ = 0;      // of the last one
  double fraction_ = 0;
};

// Returns what `progress` has become after `seconds` without a report.
BenchForecast::Progress Advanced(BenchForecast::Progress progress,
                                 double seconds);

// Formats a time in words: "about 12 s", "about 3 min", "less than 1 s".
std::string FormatTimeLeft(double seconds);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_BENCH_FORECAST_H_
