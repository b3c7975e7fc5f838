// The bars that serving is held to, judged by a run's records.
#ifndef ATTND_BENCH_SERVING_BARS_H_
#define ATTND_BENCH_SERVING_BARS_H_

#include <optional>
#include <string>
#include <vector>

#include "bench/records.h"

namespace attnd::bench {

struct Verdict {
  std::string bar;
  std::string transport;
  double measured = 0;
  std::optional<double> at_least;
  std::optional<double> at_most;

  bool meets() const {
    return measured >= at_least.value_or(measured) &&
           measured <= at_most.value_or(measured);
  }
};

// One for each bar that `records` have the numbers for.
std::vector<Verdict> Judge(const std::vector<Json>& records);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_SERVING_BARS_H_
