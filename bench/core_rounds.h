// Runs cases of the core in turns. Each turn is between two measurements of
// what limits the case. This class knows rounds and their ratios, but neither
// the list of cases nor their bars.
#ifndef ATTND_BENCH_CORE_ROUNDS_H_
#define ATTND_BENCH_CORE_ROUNDS_H_

#include <memory>
#include <vector>

#include "bench/core_groups.h"
#include "bench/records.h"

namespace attnd::bench {

struct Sampling {
  int min_rounds = 5;
  double seconds_per_case = 0.5;  // the time for which a case is sampled
};

// Not thread-safe.
class CoreRounds {
 public:
  explicit CoreRounds(const Sampling& sampling);
  ~CoreRounds();

  // Returns a record for each case, with medians over the rounds in which the
  // machine kept its speed. Turns in which it did not are repeated for up to
  // twenty times the requested seconds. If too few rounds are left after that,
  // all rounds count and the records say "steady": false.
  //
  // Throws if a call fails.
  std::vector<Json> Measure(const Group& group);

  // Returns how the stream bandwidth was measured (StreamBandwidth::Records).
  Json StreamRecords() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Returns how many multiply-adds of the widest vectors a core starts per cycle.
double FmasPerCycle();

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CORE_ROUNDS_H_
