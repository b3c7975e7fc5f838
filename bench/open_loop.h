// Makes calls according to a schedule, whether or not earlier calls have been
// answered. The latency of a call counts from its time in the schedule. So a
// slow server cannot reduce the load with which it is measured.
#ifndef ATTND_BENCH_OPEN_LOOP_H_
#define ATTND_BENCH_OPEN_LOOP_H_

#include <cstdint>
#include <vector>

#include "bench/serving_case.h"

namespace attnd::bench {

struct OpenLoopResult {
  std::vector<double> latencies_us;  // of answered calls
  std::vector<double>
      send_delays_us;  // of all calls: how late this side started them
  int64_t refused =
      0;  // the server's RESOURCE_EXHAUSTED: too many calls in flight
  double answered_per_second = 0;
};

// The calls arrive as a Poisson process with a fixed seed, at `rate` calls per
// second for `seconds`. The `clients` make them in turn. Throws
// std::runtime_error if a call fails for a reason other than a refusal.
OpenLoopResult RunOpenLoop(const ServingCase& shape,
                           const std::vector<client::AttentionClient>& clients,
                           double rate, double seconds);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_OPEN_LOOP_H_
