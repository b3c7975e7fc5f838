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
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/job_queue.h"

namespace attnd {

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

// How long a job took, from Submit to its end, in two parts. It is queued while
// no worker runs it. If other jobs have some of the workers that it could use,
// that share of the time counts as queued, too. So `running` hardly depends on
// other jobs.
struct JobTimes {
  std::chrono::nanoseconds queued{0};
  std::chrono::nanoseconds running{0};
};

class TileScheduler;

// The place in the order that a scheduler keeps for a job which is submitted
// later. Until then, other jobs are accepted only if they leave it enough time.
// It must not outlive the scheduler.
class JobTicket {
 public:
  JobTicket() = default;
  JobTicket(JobTicket&& other) noexcept
      : scheduler_(std::exchange(other.scheduler_, nullptr)),
        entry_(std::move(other.entry_)) {}
  JobTicket& operator=(JobTicket&& other) noexcept;
  ~JobTicket() { GiveBack(); }
  void GiveBack();

 private:
  friend class TileScheduler;
  TileScheduler* scheduler_ = nullptr;
  std::unique_ptr<JobQueue::Entry> entry_;
};

// A pool of worker threads, which serve the jobs in the order of JobQueue. A
// job that should run before another takes over its workers at their next check
// (SliceControl), so a small job never waits for the end of a large one.
// Thread-safe. The destructor cancels the jobs that are left, calls `done` of
// each and joins the threads.
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
  // The job takes the place of `ticket`.
  void Submit(TileJob* job, const StopSignal* stop, Done done,
              const JobOrder& order = {}, JobTicket ticket = {});

  // Returns whether a job of this order could end before its deadline. `width`
  // is how many workers it can use at a time. If it could, keeps a place for
  // it in `ticket`. A job without a deadline needs no place and gets none.
  DeadlineForecast Admit(const JobOrder& order, int64_t width,
                         JobTicket& ticket);

  // Submits a job and waits for its end. Returns what Submit would pass to
  // `done`. A worker must not call this.
  absl::Status Run(TileJob* job, const StopSignal* stop,
                   JobTimes* times = nullptr);

  int threads() const;
  // Returns how many workers run a task at this moment.
  int busy_threads() const;

  // How often workers and callers have taken the lock that guards the order of
  // jobs, and how often they had to wait for it. A worker that wakes up takes
  // it, too, but whether it waits then is not known.
  struct LockUse {
    int64_t taken = 0;
    int64_t waited = 0;
  };
  LockUse lock_use() const;

 private:
  friend class JobTicket;
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd

#endif  // ATTND_CORE_TILE_SCHEDULER_H_
