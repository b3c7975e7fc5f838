// Cases of the core in turns, each between two measurements of what bounds it.
// Knows rounds and their ratios; not which cases there are, nor their bars.
#ifndef ATTND_BENCH_CORE_ROUNDS_H_
#define ATTND_BENCH_CORE_ROUNDS_H_

#include <memory>
#include <vector>

#include "bench/core_groups.h"
#include "bench/records.h"

namespace attnd::bench {

struct Sampling {
  int min_rounds = 5;
  double seconds_per_case = 0.5;  // goes on for this long
};

// Not thread-safe.
class CoreRounds {
 public:
  explicit CoreRounds(const Sampling& sampling);
  ~CoreRounds();

  // A record for each case: medians over the rounds in which the machine kept
  // its pace. Turns in which it did not are taken again, for up to twenty times
  // the seconds asked for; where too few rounds are left then, all count and
  // the records say "steady": false.
  // Throws where a call fails.
  std::vector<Json> Measure(const Group& group);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Multiply-adds of the widest vectors that a core starts each cycle.
double FmasPerCycle();

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CORE_ROUNDS_H_
