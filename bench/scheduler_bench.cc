// Shows how much the workers of a scheduler wait for its lock, for up to 64
// workers, on a machine that has fewer processors.
//
// The tasks of this program do nothing but wait until their time is over, so
// they take the lock as often as real tasks of that time. This count says what
// would happen with as many processors as workers: the lock is then in use for
//   workers * (times that a task takes the lock) * (time per use) / (task time)
// of the time. If that comes near 1, workers wait for each other. How often
// they wait here is printed as well. With more workers than processors it says
// little, because few workers then run at the same time.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <future>
#include <thread>
#include <vector>

#include "core/tile_scheduler.h"

namespace attnd::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Micros = std::chrono::duration<double, std::micro>;

// A job of equal tasks.
class WaitingJob final : public TileJob {
 public:
  WaitingJob(int64_t tasks, int64_t slots, Micros task_time)
      : tasks_(tasks), slots_(slots), task_time_(task_time) {}

  std::vector<Phase> Phases() const override { return {{tasks_, slots_}}; }
  Slice Run(int64_t, int64_t, int64_t, SliceControl&) override {
    const Clock::time_point begin = Clock::now();
    while (Clock::now() - begin < task_time_) {
    }
    return Slice::kDone;
  }

 private:
  const int64_t tasks_;
  const int64_t slots_;
  const Micros task_time_;
};

// Its only task yields `yields` times. Its worker takes the lock each time.
class YieldingJob final : public TileJob {
 public:
  explicit YieldingJob(int64_t yields) : left_(yields) {}

  std::vector<Phase> Phases() const override { return {{1, 1}}; }
  Slice Run(int64_t, int64_t, int64_t, SliceControl&) override {
    return left_-- > 0 ? Slice::kYield : Slice::kDone;
  }

 private:
  int64_t left_;
};

// Returns how long a worker keeps the lock when it ends one task and takes the
// next one: the shortest average of several runs, because a busy machine makes
// runs longer. With many processors it is longer, too, because the jobs then
// move between their caches.
Micros TimePerUse() {
  constexpr int64_t kYields = 2000;
  TileScheduler scheduler(1);
  Micros best = Micros::max();
  for (int i = 0; i < 30; ++i) {
    YieldingJob job(kYields);
    const Clock::time_point begin = Clock::now();
    (void)scheduler.Run(&job, nullptr);
    best = std::min<Micros>(best, (Clock::now() - begin) / kYields);
  }
  return best;
}

// Runs a job of one caller and waits for its end.
void RunFor(TileScheduler& scheduler, TileJob& job, uint64_t caller) {
  std::promise<void> ended;
  scheduler.Submit(
      &job, nullptr,
      [&](const absl::Status&, const JobTimes&) { ended.set_value(); },
      {.caller = caller, .work = {.operations = 1'000'000}});
  ended.get_future().wait();
}

struct Load {
  const char* name;
  int callers;             // each of them submits one job after the other
  int64_t tasks_a_worker;  // how many tasks a job has for each worker
};

struct Flags {
  double task_us = 50;
  double seconds = 1;
  int most_workers = 64;
};

void Measure(const Load& load, int workers, Micros time_per_use,
             const Flags& flags) {
  TileScheduler scheduler(workers);
  const int64_t tasks = std::max<int64_t>(1, load.tasks_a_worker * workers);
  std::atomic<int64_t> ran{0};
  const TileScheduler::LockUse before = scheduler.lock_use();
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(
                         std::chrono::duration<double>(flags.seconds));
  {
    std::vector<std::jthread> callers;
    callers.reserve(static_cast<size_t>(load.callers));
    for (int i = 0; i < load.callers; ++i) {
      callers.emplace_back([&, i] {
        do {
          WaitingJob job(tasks, workers, Micros(flags.task_us));
          RunFor(scheduler, job, static_cast<uint64_t>(i));
          ran += tasks;
        } while (Clock::now() < end);
      });
    }
  }
  const TileScheduler::LockUse after = scheduler.lock_use();
  const auto taken = static_cast<double>(after.taken - before.taken);
  const double per_task = taken / static_cast<double>(ran.load());
  std::printf("%-26s %7d %12.3f %11.1f %% %12.2f\n", load.name, workers,
              per_task,
              100 * static_cast<double>(after.waited - before.waited) / taken,
              workers * per_task * time_per_use.count() / flags.task_us);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "Counts how often the workers of a scheduler take its lock, and predicts "
      "for\nwhich share of the time the lock is in use if each worker has a "
      "processor.");
  app.add_option("--task-us", flags.task_us, "How long a task takes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.seconds,
                 "Measure each number of workers for this many seconds")
      ->capture_default_str();
  app.add_option("--most-workers", flags.most_workers,
                 "The largest number of workers")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const Micros time_per_use = TimePerUse();
  std::printf(
      "%u processors, tasks of %.0f us, %.2f us per use of the lock\n\n",
      std::thread::hardware_concurrency(), flags.task_us, time_per_use.count());
  std::printf("%-26s %7s %12s %13s %12s\n", "jobs", "workers", "uses a task",
              "uses that wait", "lock in use");
  for (const Load& load : {Load{.name = "1 job, 64 tasks a worker",
                          .callers = 1,
                          .tasks_a_worker = 64},
                           Load{.name = "8 jobs, 64 tasks a worker",
                           .callers = 8,
                           .tasks_a_worker = 64},
                           Load{.name = "16 jobs, 2 tasks a worker",
                           .callers = 16,
                           .tasks_a_worker = 2}}) {
    for (int workers = 1; workers <= flags.most_workers; workers *= 2) {
      Measure(load, workers, time_per_use, flags);
    }
  }
  return 0;
}

}  // namespace
}  // namespace attnd::bench

int main(int argc, char** argv) {
  try {
    return attnd::bench::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "scheduler_bench: %s\n", error.what());
    return 1;
  }
}
