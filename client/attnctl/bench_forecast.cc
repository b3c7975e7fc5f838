#include "client/attnctl/bench_forecast.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

namespace attnd::attnctl {

BenchForecast::BenchForecast(std::vector<double> sizes, int power)
    : sizes_(std::move(sizes)), power_(power) {}

double BenchForecast::SecondsOf(size_t index) const {
  const double ratio = sizes_[index] / sizes_[index_ - 1];
  return attention_seconds_ * std::pow(ratio, power_) + other_seconds_ * ratio;
}

BenchForecast::Progress BenchForecast::At(
    double seconds, const client::BenchmarkProgress& progress) {
  std::optional<double> left = progress.seconds_left;
  if (!left && index_ > 0) left = std::max(0.0, SecondsOf(index_) - seconds);
  if (left) {
    const double running = seconds + *left;
    for (size_t i = index_ + 1; i < sizes_.size(); ++i) {
      // Until a benchmark has ended, nothing tells attention from the rest.
      *left += index_ > 0 ? SecondsOf(i)
                          : running * std::pow(sizes_[i] / sizes_[0], power_);
    }
  }
  double fraction = 0;
  if (left) {
    const double spent = ended_seconds_ + seconds;
    fraction = spent / std::max(spent + *left, 1e-9);
  } else {
    double all = 0;
    for (const double size : sizes_) all += std::pow(size / sizes_[0], power_);
    fraction = progress.fraction / all;
  }
  fraction_ = std::clamp(fraction, fraction_, 1.0);
  return {.fraction = fraction_, .seconds_left = left};
}

void BenchForecast::End(double seconds, const client::BenchmarkResult& result) {
  const double ms = static_cast<double>(result.repetitions) *
                    (result.flash_time_ms + result.naive_time_ms.value_or(0));
  attention_seconds_ = std::min(seconds, ms / 1e3);
  other_seconds_ = seconds - attention_seconds_;
  ended_seconds_ += seconds;
  ++index_;
}

BenchForecast::Progress Advanced(BenchForecast::Progress progress,
                                 double seconds) {
  if (progress.seconds_left && *progress.seconds_left > 0) {
    const double part = std::min(1.0, seconds / *progress.seconds_left);
    progress.fraction += (1 - progress.fraction) * part;
    *progress.seconds_left *= 1 - part;
  }
  return progress;
}

std::string FormatTimeLeft(double seconds) {
  constexpr double kMinute = 60;
  constexpr double kHour = 60 * kMinute;
  if (seconds < 1) return "less than 1 s";
  if (seconds < 2 * kMinute) return absl::StrFormat("about %.0f s", seconds);
  if (seconds < 2 * kHour) {
    return absl::StrFormat("about %.0f min", seconds / kMinute);
  }
  return absl::StrFormat("about %.1f h", seconds / kHour);
}

}  // namespace attnd::attnctl
