#include "core/work_rate.h"

#include <algorithm>

namespace attnd {
namespace {

// Used until the first job is measured: 20 GFLOP/s, which a core reaches unless
// memory limits it.
constexpr double kFirstGuess = 5e-11;

// The weight that all earlier measurements keep when one is added. The last 30
// count for almost two thirds of an estimate.
constexpr double kKept = 1 - 1.0 / 30;

// Times below this are measured too coarsely to count in full.
constexpr double kShortestSeconds = 1e-6;

}  // namespace

void WorkRate::Sums::Add(double operations, double seconds) {
  const double expected = xx > 0 ? Predict(operations) : seconds;
  const double weight = 1 / (expected * expected);
  one = one * kKept + weight;
  x = x * kKept + weight * operations;
  xx = xx * kKept + weight * operations * operations;
  y = y * kKept + weight * seconds;
  xy = xy * kKept + weight * operations * seconds;
}

double WorkRate::Sums::Predict(double operations) const {
  if (xx <= 0) return operations * kFirstGuess;
  // If all jobs had nearly the same size, or if large ones were faster by more
  // than noise explains, there is no telling a fixed cost from a slow rate.
  const double spread = one * xx - x * x;
  if (spread > 0.01 * one * xx) {
    const double slope = (one * xy - x * y) / spread;
    const double fixed = (y - slope * x) / one;
    if (slope > 0 && fixed > 0) return fixed + slope * operations;
  }
  return xy / xx * operations;
}

std::chrono::nanoseconds WorkRate::Estimate(const Work& work) const {
  const Sums& own = kinds_[static_cast<size_t>(work.kind)];
  const double seconds =
      (own.xx > 0 ? own : all_).Predict(static_cast<double>(work.operations));
  // A day is more than any deadline is worth, and the sum of many jobs fits the
  // type.
  constexpr double kMostSeconds = 1e5;
  return std::chrono::nanoseconds(
      static_cast<int64_t>(std::min(seconds, kMostSeconds) * 1e9));
}

bool WorkRate::Knows(const Work& work) const {
  return kinds_[static_cast<size_t>(work.kind)].xx > 0;
}

void WorkRate::Observe(const Work& work, std::chrono::nanoseconds worker_time) {
  if (work.operations <= 0) return;
  const auto operations = static_cast<double>(work.operations);
  const double seconds = std::max(
      std::chrono::duration<double>(worker_time).count(), kShortestSeconds);
  kinds_[static_cast<size_t>(work.kind)].Add(operations, seconds);
  all_.Add(operations, seconds);
}

}  // namespace attnd
