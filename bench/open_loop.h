// Calls that come when they come, whether or not earlier ones were answered: a
// schedule made beforehand, and latency counted from the time in it. A slow
// server cannot slow down the load that it is judged by.
#ifndef ATTND_BENCH_OPEN_LOOP_H_
#define ATTND_BENCH_OPEN_LOOP_H_

#include <cstdint>
#include <vector>

#include "bench/serving_case.h"

namespace attnd::bench {

struct OpenLoopResult {
  std::vector<double> latencies_us;    // of answered calls
  std::vector<double> send_delays_us;  // of all: how late this side began them
  int64_t refused = 0;  // RESOURCE_EXHAUSTED: more in flight than allowed
  double answered_per_second = 0;
};

// Poisson arrivals (fixed seed) at `rate` a second for `seconds`, dealt out to
// `clients` in turn. Throws std::runtime_error where a call fails otherwise.
OpenLoopResult RunOpenLoop(const ServingCase& shape,
                           const std::vector<client::AttentionClient>& clients,
                           double rate, double seconds);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_OPEN_LOOP_H_
