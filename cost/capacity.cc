#include "cost/capacity.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <cstddef>
#include <numbers>

namespace attnd {
namespace {

constexpr double kRefused = 1e-3;  // the share of calls that find no room

// Returns E[exp(-s V)], where V is the time in the queue and a call takes 1
// alone.
std::complex<double> SojournTransform(std::complex<double> s,
                                      double utilization) {
  const double idle = 1 - utilization;
  const std::complex<double> sum = s + utilization;
  const std::complex<double> decay = std::exp(-sum);
  return idle * sum * sum * decay /
         (s * s + utilization * (s + sum * idle) * decay);
}

// Returns the probability that a call has the queue to itself all the time.
double AloneProbability(double utilization) {
  return (1 - utilization) * std::exp(-utilization);
}

// Returns the probability that a call spends more than `time` >= 1 in the
// queue. The series is the algorithm EULER of Abate and Whitt, with their
// parameters. It needs a distribution without steps, so it leaves out the calls
// that take exactly 1.
double SojournTail(double time, double utilization) {
  constexpr double kA = 18.4;  // the discretization error is exp(-kA)
  constexpr int kTerms = 38;
  constexpr std::array<double, 12> kBinomials = {1,   11,  55,  165, 330, 462,
                                                 462, 330, 165, 55,  11,  1};
  const double alone = AloneProbability(utilization);
  const auto transform = [&](std::complex<double> s) {
    const std::complex<double> delayed =
        SojournTransform(s, utilization) - alone * std::exp(-s);
    return ((1 - alone - delayed) / s).real();
  };
  const double real = kA / (2 * time);
  double sum = transform(real) / 2;
  double average = 0;
  constexpr int kAveraged = static_cast<int>(kBinomials.size());
  for (int k = 1; k < kTerms + kAveraged; ++k) {
    const double term = transform({real, k * std::numbers::pi / time});
    sum += k % 2 == 0 ? term : -term;
    if (k >= kTerms) {
      average += kBinomials[static_cast<size_t>(k - kTerms)] / 2048 * sum;
    }
  }
  return std::exp(kA / 2) / time * average;
}

// Returns the load and the latency of each pod if there are `pods` of them.
CapacityPlan PlanFor(double pods, const CallTime& time,
                     const CapacityGoal& goal) {
  CapacityPlan plan;
  const double rate = goal.calls_per_second / pods;
  plan.utilization = rate * time.busy_s;
  if (plan.utilization >= 1) return plan;
  const double elsewhere_s = std::max(0.0, time.alone_s - time.busy_s);
  plan.mean_s = elsewhere_s + time.busy_s / (1 - plan.utilization);
  plan.p99_s =
      elsewhere_s + time.busy_s * SojournQuantile(plan.utilization, 0.99);
  plan.mean_concurrency = rate * plan.mean_s;
  // With processor sharing, a call finds n others with the probability
  // (1 - utilization) * utilization^n, whatever times the calls take.
  const double queued = std::log(kRefused) / std::log(plan.utilization);
  plan.concurrency = static_cast<int64_t>(std::max(1.0, std::ceil(queued)) +
                                          std::floor(rate * elsewhere_s));
  return plan;
}

}  // namespace

double SojournQuantile(double utilization, double probability) {
  if (AloneProbability(utilization) >= probability) return 1;
  const auto exceeds = [&](double time) {
    return SojournTail(time, utilization) > 1 - probability;
  };
  double low = 1;
  double high = 2;
  while (exceeds(high)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1e-6 * high) {
    const double middle = (low + high) / 2;
    (exceeds(middle) ? low : high) = middle;
  }
  return high;
}

CapacityPlan PlanCapacity(const CallTime& time, const CapacityGoal& goal) {
  // Without any other calls, a call takes this long.
  if (std::max(time.alone_s, time.busy_s) > goal.p99_s) {
    return {.bound = "latency"};
  }
  if (goal.max_concurrency < 1) return {.bound = "memory"};
  const auto bound_of = [&](const CapacityPlan& plan) -> std::string_view {
    if (plan.utilization >= 1) return "processors";
    if (plan.p99_s > goal.p99_s) return "latency";
    return plan.concurrency > goal.max_concurrency ? "memory" : "";
  };
  // The largest number that is known to be too small, and the smallest that is
  // known to be enough. Doubles hold them exactly up to 2^53.
  constexpr double kMostPods = 1e15;
  double too_few = 0;
  double enough = 1;
  std::string_view bound = "processors";
  const auto try_pods = [&](double pods) {
    const std::string_view bound_there = bound_of(PlanFor(pods, time, goal));
    if (bound_there.empty()) {
      enough = pods;
      return true;
    }
    too_few = pods;
    bound = bound_there;
    return false;
  };
  while (!try_pods(enough)) {
    enough *= 2;
    if (enough > kMostPods) return {.bound = bound};
  }
  while (enough - too_few > 1) {
    try_pods(std::floor(too_few + (enough - too_few) / 2));
  }
  CapacityPlan plan = PlanFor(enough, time, goal);
  plan.pods = static_cast<int64_t>(enough);
  plan.bound = bound;
  return plan;
}

}  // namespace attnd
