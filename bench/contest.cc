#include "bench/contest.h"

#include <barrier>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

namespace attnd::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// This is long compared with the start of a thread, and short compared with the
// time in which the speed of the machine changes.
constexpr Seconds kBurst{0.02};

// Calls for at least kBurst, and at least once.
std::vector<double> CallRepeatedly(const Contestant& contestant, int client) {
  std::vector<double> samples_us;
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(kBurst);
  Clock::time_point before = Clock::now();
  do {
    contestant.call(client);
    const Clock::time_point after = Clock::now();
    samples_us.push_back(Seconds(after - before).count() * 1e6);
    before = after;
  } while (before < end);
  return samples_us;
}

void Burst(Contestant& contestant) {
  std::mutex mutex;
  std::exception_ptr failure;
  std::barrier start(contestant.clients);
  Clock::time_point begin = Clock::now();
  const auto run = [&](int client) {
    std::vector<double> samples_us;
    try {
      if (contestant.clients > 1) start.arrive_and_wait();
      if (client == 0) begin = Clock::now();
      samples_us = CallRepeatedly(contestant, client);
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    contestant.samples_us.insert(contestant.samples_us.end(),
                                 samples_us.begin(), samples_us.end());
  };
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < contestant.clients; ++i) others.emplace_back(run, i);
    run(0);
  }
  if (failure) std::rethrow_exception(failure);
  contestant.spent_seconds += Seconds(Clock::now() - begin).count();
}

}  // namespace

void RunContest(const std::vector<Contestant*>& contestants,
                const ContestOptions& options) {
  for (Contestant* contestant : contestants) {
    Burst(*contestant);
    contestant->samples_us.clear();
    contestant->spent_seconds = 0;
  }
  const Clock::time_point begin = Clock::now();
  for (int round = 0; round < options.min_rounds ||
                      Seconds(Clock::now() - begin).count() < options.seconds;
       ++round) {
    for (Contestant* contestant : contestants) Burst(*contestant);
  }
}

}  // namespace attnd::bench
