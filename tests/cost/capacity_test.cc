#include "cost/capacity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/numbers.h"

namespace attnd {
namespace {

// Simulates a queue with processor sharing, in which each call takes 1 alone,
// and returns the sorted times that `calls` calls spend in it.
std::vector<double> SimulateSojourns(double utilization, int64_t calls,
                                     uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::exponential_distribution<double> gap(utilization);
  // The service that each call in the queue has received since the start, if it
  // had been there from the start.
  double service = 0;
  using Call = std::pair<double, double>;  // the service at its end, its begin
  std::priority_queue<Call, std::vector<Call>, std::greater<>> queue;
  std::vector<double> sojourns;
  double now = 0;
  double next = gap(rng);
  while (sojourns.size() < static_cast<size_t>(calls)) {
    const auto sharing = static_cast<double>(queue.size());
    const double end = queue.empty()
                           ? std::numeric_limits<double>::infinity()
                           : now + (queue.top().first - service) * sharing;
    if (next < end) {
      if (!queue.empty()) service += (next - now) / sharing;
      now = next;
      queue.emplace(service + 1, now);
      next = now + gap(rng);
    } else {
      service = queue.top().first;
      now = end;
      sojourns.push_back(now - queue.top().second);
      queue.pop();
    }
  }
  std::sort(sojourns.begin(), sojourns.end());
  return sojourns;
}

TEST(CapacityTest, TheQuantileIsThatOfASimulation) {
  for (const double utilization : {0.02, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9}) {
    constexpr int64_t kCalls = 1'000'000;
    const std::vector<double> sojourns =
        SimulateSojourns(utilization, kCalls, kSeed);
    for (const double probability : {0.5, 0.9, 0.99}) {
      const double simulated =
          sojourns[static_cast<size_t>(probability * kCalls)];
      EXPECT_NEAR(SojournQuantile(utilization, probability), simulated,
                  0.05 * simulated)
          << "utilization " << utilization << ", probability " << probability
          << ", seed " << kSeed;
    }
  }
}

TEST(CapacityTest, ThePlanIsTheSmallestThatIsEnough) {
  std::mt19937_64 rng(kSeed);
  const auto between = [&rng](double low, double high) {
    return std::exp(std::uniform_real_distribution<double>(
        std::log(low), std::log(high))(rng));
  };
  int planned = 0;
  for (int i = 0; i < 300; ++i) {
    CallTime time = {.busy_s = between(1e-4, 1)};
    time.alone_s = time.busy_s * between(0.5, 3);
    const CapacityGoal goal = {
        .calls_per_second = between(0.1, 20) / time.busy_s,
        .p99_s = time.busy_s * between(0.5, 50),
        .max_concurrency = static_cast<int64_t>(between(1, 100))};
    const CapacityPlan plan = PlanCapacity(time, goal);
    SCOPED_TRACE(testing::Message() << "case " << i << ", seed " << kSeed);
    if (plan.pods == 0) {
      EXPECT_TRUE(std::max(time.busy_s, time.alone_s) > goal.p99_s);
      EXPECT_EQ(plan.bound, "latency");
      continue;
    }
    ++planned;
    EXPECT_LT(plan.utilization, 1);
    EXPECT_LE(plan.p99_s, goal.p99_s);
    EXPECT_LE(plan.concurrency, goal.max_concurrency);
    EXPECT_NEAR(
        plan.mean_concurrency,
        goal.calls_per_second / static_cast<double>(plan.pods) * plan.mean_s,
        1e-9 * plan.mean_concurrency);
    // The same rate on each of one pod fewer, without the limit that stopped
    // it, breaks that limit.
    if (plan.pods == 1) continue;
    const double fewer = static_cast<double>(plan.pods) - 1;
    const CapacityPlan one =
        PlanCapacity(time, {.calls_per_second = goal.calls_per_second / fewer,
                            .p99_s = std::numeric_limits<double>::infinity()});
    if (plan.bound == "processors") {
      EXPECT_GE(goal.calls_per_second / fewer * time.busy_s, 1);
    } else {
      ASSERT_EQ(one.pods, 1);
      EXPECT_TRUE(plan.bound == "latency"
                      ? one.p99_s > goal.p99_s
                      : one.concurrency > goal.max_concurrency);
    }
  }
  EXPECT_GT(planned, 100);
}

TEST(CapacityTest, NamesWhatNoNumberOfPodsCures) {
  const CallTime time = {.busy_s = 0.1, .alone_s = 0.3};
  EXPECT_EQ(PlanCapacity(time, {.calls_per_second = 1, .p99_s = 0.2}).bound,
            "latency");
  EXPECT_EQ(PlanCapacity(time, {.calls_per_second = 1, .p99_s = 0.2}).pods, 0);
  const CapacityPlan no_room = PlanCapacity(
      time, {.calls_per_second = 1, .p99_s = 1, .max_concurrency = 0});
  EXPECT_EQ(no_room.pods, 0);
  EXPECT_EQ(no_room.bound, "memory");
}

TEST(CapacityTest, OneCallAtATimeNeedsFewPods) {
  const CapacityPlan plan =
      PlanCapacity({.busy_s = 0.01, .alone_s = 0.012},
                   {.calls_per_second = 10, .p99_s = 0.05});
  EXPECT_EQ(plan.pods, 1);
  EXPECT_EQ(plan.bound, "processors");
  EXPECT_NEAR(plan.utilization, 0.1, 1e-12);
  EXPECT_NEAR(plan.mean_s, 0.002 + 0.01 / 0.9, 1e-12);
  EXPECT_EQ(plan.concurrency, 3);  // 0.1^3 = 1 of 1000
}

}  // namespace
}  // namespace attnd
