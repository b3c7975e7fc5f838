// One set of workers for every request. Knows jobs made of small tasks, their
// order, their deadlines and their cancellation; nothing of attention.
#ifndef ATTND_CORE_TILE_SCHEDULER_H_
#define ATTND_CORE_TILE_SCHEDULER_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"

namespace attnd {

using SteadyTime = std::chrono::steady_clock::time_point;

// Asks one running job to stop: when it is cancelled, when its deadline has
// passed, and when `outer`, if that is not null, asks to stop. Shared between
// its owner and its workers; thread-safe. `outer` must outlive it.
class StopSignal {
 public:
  explicit StopSignal(SteadyTime deadline = SteadyTime::max(),
                      const StopSignal* outer = nullptr)
      : deadline_(deadline), outer_(outer) {}

  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }

  // OK, CANCELLED or DEADLINE_EXCEEDED. Reads the clock where there is a
  // deadline.
  absl::Status Check() const;
  bool ShouldStop() const { return !Check().ok(); }

 private:
  std::atomic<bool> cancelled_{false};
  const SteadyTime deadline_;
  const StopSignal* const outer_;
};

// What a slice may ask while it runs.
class SliceControl {
 public:
  virtual ~SliceControl() = default;
  // The job should stop: what the slice computed is thrown away.
  virtual bool ShouldStop() = 0;
  // There is another job, which may wait for a worker, and this slice had its
  // time: it should save its state in its slot and return kYield.
  virtual bool ShouldYield() = 0;
};

// A job: phases one after the other, each a number of tasks that may run in
// any order and at once. A task runs in a slot, of which a phase has as many as
// it may have tasks in progress; a task that yields keeps its slot.
class TileJob {
 public:
  enum class Slice { kDone, kYield };

  struct Phase {
    int64_t tasks = 0;
    int64_t slots = 1;  // >= 1
  };

  virtual ~TileJob() = default;

  // Read once, at submission.
  virtual std::vector<Phase> Phases() const = 0;
  // Runs task `task` of `phase` until it is done or yields; called again with
  // the same slot after a yield. `slot`, below the phase's slots, belongs to
  // this task alone meanwhile. Must not throw, block or allocate.
  virtual Slice Run(int64_t phase, int64_t task, int64_t slot,
                    SliceControl& control) = 0;
};

struct JobTimes {
  std::chrono::nanoseconds queued{0};   // submission to first task
  std::chrono::nanoseconds running{0};  // first task to last
};

// A pool of threads. Jobs that are in progress take turns, task by task, so
// that a small one never waits for a large one to end. Thread-safe. The
// destructor cancels what is left, calls every `done` and joins.
class TileScheduler {
 public:
  // Called once a job, by a worker, after its last task: OK, CANCELLED or
  // DEADLINE_EXCEEDED. The scheduler does not touch the job after it; it may
  // destroy the job, and must not block.
  using Done = std::function<void(absl::Status, const JobTimes&)>;

  // Throws std::system_error, and leaves no thread behind, where the system
  // starts fewer.
  explicit TileScheduler(int threads);
  ~TileScheduler();
  TileScheduler(const TileScheduler&) = delete;
  TileScheduler& operator=(const TileScheduler&) = delete;

  // Never blocks on work. `job` and `stop` must live until `done` is called. A
  // job that should already stop never starts a task.
  void Submit(TileJob* job, const StopSignal* stop, Done done);

  // Submits and waits. Not from a worker.
  absl::Status Run(TileJob* job, const StopSignal* stop,
                   JobTimes* times = nullptr);

  int threads() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd

#endif  // ATTND_CORE_TILE_SCHEDULER_H_
