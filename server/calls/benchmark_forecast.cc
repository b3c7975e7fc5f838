#include "server/calls/benchmark_forecast.h"

#include <algorithm>

namespace attnd::server {
namespace {

// A benchmark that has not ended is never reported as complete.
constexpr double kMaxFraction = 0.999;

const char* NameOf(BenchmarkPhase phase) {
  switch (phase) {
    case BenchmarkPhase::kPrepare:
      return "prepare";
    case BenchmarkPhase::kPeak:
      return "peak";
    case BenchmarkPhase::kNaive:
      return "naive";
    case BenchmarkPhase::kFlash:
      return "flash";
    case BenchmarkPhase::kVerify:
      return "verify";
  }
  return "";
}

}  // namespace

BenchmarkForecast::BenchmarkForecast(const Plan& plan)
    : measuring_limit_(plan.measuring_limit), limit_(plan.limit) {
  Of(BenchmarkPhase::kPrepare).planned = 1;
  Of(BenchmarkPhase::kPeak).planned = plan.peaks;
  Of(BenchmarkPhase::kNaive).planned = plan.repetitions;
  Of(BenchmarkPhase::kFlash).planned = plan.repetitions;
  Of(BenchmarkPhase::kVerify).planned = 1;
}

void BenchmarkForecast::Expect(BenchmarkPhase phase, Seconds time) {
  Of(phase).expected = time;
}

BenchmarkForecast::Seconds BenchmarkForecast::Runs::Left() const {
  const Seconds one = ended > 0 ? spent / static_cast<double>(ended) : expected;
  return one * static_cast<double>(planned - ended);
}

BenchmarkForecast::Seconds BenchmarkForecast::LeftAt(BenchmarkPhase phase,
                                                     Seconds now) {
  constexpr Seconds kNone(0);
  Seconds measuring = kNone;
  // If the time was up, fewer repetitions have run than were planned.
  if (phase != BenchmarkPhase::kVerify) {
    for (const BenchmarkPhase measured :
         {BenchmarkPhase::kPrepare, BenchmarkPhase::kPeak,
          BenchmarkPhase::kNaive, BenchmarkPhase::kFlash}) {
      measuring += Of(measured).Left();
    }
    measuring =
        std::clamp(measuring, kNone, std::max(kNone, measuring_limit_ - now));
  }
  const Seconds verifying =
      std::clamp(Of(BenchmarkPhase::kVerify).Left(), kNone,
                 std::max(kNone, limit_ - now - measuring));
  return measuring + verifying;
}

v1::BenchmarkProgress BenchmarkForecast::Begin(BenchmarkPhase phase,
                                               Seconds now) {
  if (begun_) {
    Runs& before = Of(phase_);
    ++before.ended;
    before.spent += now - phase_begin_;
  }
  begun_ = true;
  phase_ = phase;
  phase_begin_ = now;
  const Seconds left = LeftAt(phase, now);
  if (Of(BenchmarkPhase::kPeak).ended > 0) {
    fraction_ = std::max(
        fraction_, std::min(kMaxFraction, now.count() / (now + left).count()));
  }
  v1::BenchmarkProgress progress;
  progress.set_phase(NameOf(phase));
  progress.set_fraction(fraction_);
  if (Of(BenchmarkPhase::kFlash).ended > 0) {
    progress.set_seconds_left(left.count());
  }
  return progress;
}

}  // namespace attnd::server
