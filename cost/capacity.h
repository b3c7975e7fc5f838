// Finds out how many servers a rate of calls needs, so that the calls are
// answered in time. A server that runs in a pod of its own is called a pod.
#ifndef ATTND_COST_CAPACITY_H_
#define ATTND_COST_CAPACITY_H_

#include <cstdint>
#include <limits>
#include <string_view>

namespace attnd {

// The time that calls of one kind take on one pod, in seconds.
struct CallTime {
  // How long a call keeps the pod busy. This is 1 / the rate at which the pod
  // is saturated.
  double busy_s = 0;
  // How long a call takes while the pod has no other call. It can be longer
  // than busy_s, because a pod receives one call while it computes another.
  double alone_s = 0;
};

// What the calls need.
struct CapacityGoal {
  double calls_per_second = 0;  // of all pods together
  double p99_s = 0;             // 99 of 100 calls take at most this long
  // How many calls a pod can hold at the same time.
  int64_t max_concurrency = std::numeric_limits<int64_t>::max();
};

// The smallest number of pods that is enough, and what happens on each of them.
struct CapacityPlan {
  int64_t pods = 0;  // 0 = no number of pods is enough
  // What makes a smaller number too small: "processors" if it would be
  // saturated, "latency" if calls would take too long, or "memory" if it could
  // not hold the calls. If `pods` is 0, what makes the largest number that
  // PlanCapacity tries, about 10^15, too small.
  std::string_view bound;
  double utilization = 0;  // the share of the time that a pod is busy
  double mean_s = 0;       // how long calls take on average
  double p99_s = 0;        // 99 of 100 calls take at most this long
  // How many calls a pod holds on average (Little's law), and how many it has
  // to be able to hold, so that it refuses at most 1 of 1000.
  double mean_concurrency = 0;
  int64_t concurrency = 0;
};

// Returns the plan for `goal`, whose numbers must be positive.
//
// The model is M/D/1 with processor sharing: calls arrive at random times, all
// take the same time, and the calls that a pod holds share its workers equally,
// as those of different clients do in the TileScheduler. Calls of one client
// run one after the other, so that they take less time on average than the
// model says. A call spends max(0, alone_s - busy_s) in stages that do
// not wait for other calls, and the rest in the queue.
CapacityPlan PlanCapacity(const CallTime& time, const CapacityGoal& goal);

// Returns the quantile of the time that calls spend in an M/D/1 queue with
// processor sharing, as a multiple of the time that a call takes alone.
// `utilization` must be at least 0 and below 1, and `probability` between 0
// and 1. The error is below 5 %.
//
// The transform of this time is in T. J. Ott, "The sojourn-time distribution in
// the M/G/1 queue with processor sharing", Journal of Applied Probability 21
// (1984). It is inverted as in J. Abate and W. Whitt, "Numerical inversion of
// Laplace transforms of probability distributions", ORSA Journal on Computing 7
// (1995).
double SojournQuantile(double utilization, double probability);

}  // namespace attnd

#endif  // ATTND_COST_CAPACITY_H_
