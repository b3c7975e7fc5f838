// Closed loops that take turns: each contestant runs for a short burst, then
// the next, round after round, so that all of them see the same noise.
#ifndef ATTND_BENCH_CONTEST_H_
#define ATTND_BENCH_CONTEST_H_

#include <functional>
#include <vector>

namespace attnd::bench {

struct Contestant {
  // One call by client number `client`; returns when it is answered.
  std::function<void(int client)> call;
  int clients = 1;  // that call at once, each in a thread of its own

  // Results.
  std::vector<double> samples_us = {};
  double spent_seconds = 0;  // in bursts

  double rps() const {
    return static_cast<double>(samples_us.size()) / spent_seconds;
  }
};

struct ContestOptions {
  double seconds = 2;  // in all; never fewer rounds than min_rounds
  int min_rounds = 7;
};

// A first round warms up and is not counted. Throws what a call throws.
void RunContest(const std::vector<Contestant*>& contestants,
                const ContestOptions& options);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CONTEST_H_
