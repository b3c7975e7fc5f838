// Predicts how long a running benchmark still takes. Reads no clock.
#ifndef ATTND_SERVER_CALLS_BENCHMARK_FORECAST_H_
#define ATTND_SERVER_CALLS_BENCHMARK_FORECAST_H_

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "attnd/v1/attention.pb.h"

namespace attnd::server {

enum class BenchmarkPhase { kPrepare, kPeak, kNaive, kFlash, kVerify };

// Predicts from the time that the phases have taken until now, because phases
// differ much: naive attention can take fifty times as long as flash attention.
// Not thread-safe.
class BenchmarkForecast {
 public:
  using Seconds = std::chrono::duration<double>;

  struct Plan {
    int64_t repetitions = 0;  // how often naive and flash attention run
    int64_t peaks = 0;        // how often the machine is measured
    // When everything before the verification ends at the latest, and when
    // everything ends, counted from the start of the benchmark.
    Seconds measuring_limit = Seconds(std::numeric_limits<double>::infinity());
    Seconds limit = Seconds(std::numeric_limits<double>::infinity());
  };
  explicit BenchmarkForecast(const Plan& plan);

  // Sets how long one run of `phase` takes. It counts until one has ended.
  void Expect(BenchmarkPhase phase, Seconds time);

  // Call this when a phase begins, `now` after the start of the benchmark. The
  // phase before ends then. Returns what to report to the client. The fraction
  // is 0 until the machine has been measured, and seconds_left is unset until
  // one repetition has ended.
  v1::BenchmarkProgress Begin(BenchmarkPhase phase, Seconds now);

 private:
  struct Runs {
    int64_t planned = 0;
    int64_t ended = 0;
    Seconds spent = Seconds(0);     // by those that have ended
    Seconds expected = Seconds(0);  // for one, until one has ended

    Seconds Left() const;
  };
  Runs& Of(BenchmarkPhase phase) { return runs_[static_cast<size_t>(phase)]; }
  // Returns the time that is left at `now`, when `phase` begins.
  Seconds LeftAt(BenchmarkPhase phase, Seconds now);

  const Seconds measuring_limit_;
  const Seconds limit_;
  std::array<Runs, 5> runs_;
  bool begun_ = false;
  BenchmarkPhase phase_ = BenchmarkPhase::kPrepare;  // which runs now
  Seconds phase_begin_ = Seconds(0);
  double fraction_ = 0;  // the last one that was reported
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_BENCHMARK_FORECAST_H_
