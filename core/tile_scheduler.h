// Runs the jobs of all requests on one set of worker threads. A job consists of
// small tasks. The scheduler decides their order and ends jobs that are
// cancelled or late. It knows nothing about attention.
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
// passed, or when `outer` asks to stop. `outer` may be null; otherwise it must
// outlive this signal. Thread-safe, because the job's owner and the workers
// share it.
class StopSignal {
 public:
  explicit StopSignal(SteadyTime deadline = SteadyTime::max(),
                      const StopSignal* outer = nullptr)
      : deadline_(deadline), outer_(outer) {}

  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }

  // Returns OK as long as the job may go on, and otherwise CANCELLED or
  // DEADLINE_EXCEEDED. Reads the clock if there is a deadline.
  absl::Status Check() const;
  bool ShouldStop() const { return !Check().ok(); }

 private:
  std::atomic<bool> cancelled_{false};
  const SteadyTime deadline_;
  const StopSignal* const outer_;
};

// A running task asks it whether to stop, or to let another job run first.
class SliceControl {
 public:
  virtual ~SliceControl() = default;
  // Returns whether the job was cancelled or its deadline has passed. The task
  // should then return; its results are discarded.
  virtual bool ShouldStop() = 0;
  // Returns whether the task has used up its share of time while another job
  // may be waiting for a worker. The task should then save its state in its
  // slot and return kYield.
  virtual bool ShouldYield() = 0;
};

// The work of one request, cut into tasks. A job has phases that run one after
// the other. The tasks of a phase start in order, and may run at the same time.
// Each task in progress has the number of a slot (its place for working
// memory), and keeps it when it yields.
class TileJob {
 public:
  enum class Slice { kDone, kYield };

  struct Phase {
    int64_t tasks = 0;
    int64_t slots = 1;  // the most tasks in progress, at least 1
  };

  virtual ~TileJob() = default;

  // Returns the phases in their order. The scheduler calls this once, when the
  // job is submitted.
  virtual std::vector<Phase> Phases() const = 0;
  // Runs task `task` of `phase` until it is done or yields. After a yield, the
  // scheduler calls this again with the same `slot`. It is below Phase::slots,
  // and no other task has it until this task is done. Must not throw, block or
  // allocate.
  virtual Slice Run(int64_t phase, int64_t task, int64_t slot,
                    SliceControl& control) = 0;
};

// What decides when the tasks of a job run, relative to those of other jobs.
struct JobOrder {
  // Jobs with the same number belong to the same client.
  uint64_t client = 0;
  // When the result is of no more use.
  SteadyTime deadline = SteadyTime::max();
  // How many floating-point operations the job takes, or 0 if that is not
  // known.
  int64_t operations = 0;
};

struct JobTimes {
  std::chrono::nanoseconds queued{0};   // submission to first task
  std::chrono::nanoseconds running{0};  // first task to last
};

// A pool of worker threads. Workers take tasks of all jobs in turn, so that a
// small job never waits for the end of a large one. Thread-safe. The destructor
// cancels the jobs that are left, calls `done` of each and joins the threads.
class TileScheduler {
 public:
  // A worker calls this once for each job, after its last task, with OK,
  // CANCELLED or DEADLINE_EXCEEDED. It may destroy the job, which the scheduler
  // does not touch any more. It must not block.
  using Done = std::function<void(absl::Status, const JobTimes&)>;

  // Starts `threads` workers. If the system starts fewer, throws
  // std::system_error after it has ended those.
  explicit TileScheduler(int threads);
  ~TileScheduler();
  TileScheduler(const TileScheduler&) = delete;
  TileScheduler& operator=(const TileScheduler&) = delete;

  // Starts a job and returns. `job` and `stop` must live until `done` is
  // called. If `stop` asks to stop before the job's first task, no task runs.
  void Submit(TileJob* job, const StopSignal* stop, Done done,
              const JobOrder& order = {});

  // Submits a job and waits for its end. Returns what Submit would pass to
  // `done`. A worker must not call this.
  absl::Status Run(TileJob* job, const StopSignal* stop,
                   JobTimes* times = nullptr);

  int threads() const;
  // Returns how many workers run a task at this moment.
  int busy_threads() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd

#endif  // ATTND_CORE_TILE_SCHEDULER_H_
