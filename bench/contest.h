// Compares closed loops that take turns. Each contestant runs for a short
// burst, then the next one, in many rounds, so that all of them see the same
// noise.
#ifndef ATTND_BENCH_CONTEST_H_
#define ATTND_BENCH_CONTEST_H_

#include <functional>
#include <vector>

namespace attnd::bench {

struct Contestant {
  // Makes one call for client number `client`, and returns when it is answered.
  std::function<void(int client)> call;
  int clients =
      1;  // clients that call at the same time, each in its own thread

  // The results follow.
  std::vector<double> samples_us = {};
  double spent_seconds = 0;  // the time of all bursts

  double rps() const {
    return static_cast<double>(samples_us.size()) / spent_seconds;
  }
};

struct ContestOptions {
  double seconds = 2;  // in total, but at least min_rounds rounds
  int min_rounds = 7;
};

// The first round warms up and is not counted. Throws what a call throws.
void RunContest(const std::vector<Contestant*>& contestants,
                const ContestOptions& options);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CONTEST_H_
