#include "core/tile_scheduler.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <list>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

namespace attnd {
namespace {

using Clock = std::chrono::steady_clock;

// For so long, the jobs that wait are not asked again whether they should stop.
constexpr std::chrono::milliseconds kSweepInterval{2};

// What a job of unknown size is expected to take in addition to what it has
// taken. So it comes after those of known size, and all of unknown size take
// turns.
constexpr std::chrono::hours kUnknownTime{1};

// Divides the life of a job into the time that it waits for workers and the
// time that it runs. It waits while it has no worker. While it has only some of
// the workers that it could use, because other jobs have the rest, that share
// of the time counts as running.
class JobClock {
 public:
  // `threads` is how many workers there are. The job is submitted `now`.
  JobClock(int64_t threads, Clock::time_point now)
      : threads_(threads), last_(now) {}

  // Call it just before the number of running or of ready tasks changes, with
  // the numbers until `now`. A ready task could run at once on a free worker.
  // `alone` is whether there is no other job.
  void Advance(int64_t running, int64_t ready, bool alone,
               Clock::time_point now) {
    const std::chrono::nanoseconds passed = now - std::exchange(last_, now);
    // If the job was alone, its ready tasks waited for a worker to wake up.
    const bool shared = !std::exchange(alone_, alone) || !alone;
    const int64_t waiting =
        shared ? std::min(ready, threads_ - running) : int64_t{0};
    const std::chrono::nanoseconds ran =
        running == 0 ? passed * 0 : passed * running / (running + waiting);
    times_.running += ran;
    times_.queued += passed - ran;
  }
  const JobTimes& times() const { return times_; }

 private:
  int64_t threads_;
  Clock::time_point last_;
  bool alone_ = false;
  JobTimes times_;
};

}  // namespace

absl::Status StopSignal::Check() const {
  if (cancelled_.load(std::memory_order_relaxed)) {
    return absl::CancelledError("the call was cancelled");
  }
  if (deadline_ != SteadyTime::max() && Clock::now() >= deadline_) {
    return absl::DeadlineExceededError("the deadline passed");
  }
  return outer_ != nullptr ? outer_->Check() : absl::OkStatus();
}

class TileScheduler::Impl {
 public:
  explicit Impl(int threads)
      : queue_(threads), running_(static_cast<size_t>(threads)) {
    workers_.reserve(running_.size());
    try {
      for (Running& running : running_) {
        workers_.emplace_back([this, &running] { Work(running); });
      }
    } catch (...) {
      JoinWorkers();
      throw;
    }
  }

  ~Impl() { JoinWorkers(); }

  int threads() const { return static_cast<int>(workers_.size()); }
  int busy_threads() const { return busy_.load(std::memory_order_relaxed); }
  LockUse lock_use() {
    const std::lock_guard lock(mutex_);
    return lock_use_;
  }

  void Submit(TileJob* job, const StopSignal* stop, Done done,
              const JobOrder& order, std::unique_ptr<JobQueue::Entry> place) {
    std::vector<TileJob::Phase> phases = job->Phases();
    int64_t most_slots = 1;
    int64_t width = 1;
    for (const TileJob::Phase& phase : phases) {
      most_slots = std::max(most_slots, phase.slots);
      width = std::max(width, std::min(phase.slots, phase.tasks));
    }
    auto state = std::make_unique<State>(order, threads());
    state->job = job;
    state->stop = stop;
    state->done = std::move(done);
    state->phases = std::move(phases);
    for (const TileJob::Phase& phase : state->phases) {
      state->all_tasks += phase.tasks;
    }
    state->later_tasks = state->all_tasks;
    // The lists are reserved here so that nothing allocates while the job runs.
    state->free_slots.reserve(static_cast<size_t>(most_slots));
    state->yielded.reserve(static_cast<size_t>(most_slots));
    state->BeginPhase(0);
    State& added = *state;
    std::unique_lock lock = TakeLock();
    if (place != nullptr) queue_.Remove(*place);
    added.work_time = Estimate(order);
    queue_.Add(added, added.work_time);
    // A job without tasks is ready, too, so that a worker ends it.
    queue_.SetReady(added, true);
    added.place = jobs_.insert(jobs_.end(), std::move(state));
    queued_.fetch_add(1, std::memory_order_relaxed);
    if (idle_ == 0) Interrupt(added, width);
    const int idle = idle_;
    lock.unlock();
    Wake(width, idle);
  }

  DeadlineForecast Admit(const JobOrder& order, int64_t width,
                         std::unique_ptr<JobQueue::Entry>& place) {
    if (order.deadline == SteadyTime::max()) return {};
    const std::unique_lock lock = TakeLock();
    const Duration work_time = Estimate(order);
    DeadlineForecast forecast;
    // The estimate for a kind of work that was never measured can be wrong by
    // far, so such a job is tried.
    if (rate_.Knows(order.work)) {
      forecast = queue_.Forecast(order, work_time, width, Clock::now());
    }
    if (!forecast.in_time) return forecast;
    place = std::make_unique<JobQueue::Entry>(order);
    queue_.Add(*place, work_time);
    return forecast;
  }

  void GiveBack(JobQueue::Entry& entry) {
    const std::unique_lock lock = TakeLock();
    queue_.Remove(entry);
  }

 private:
  using Duration = std::chrono::nanoseconds;

  std::unique_lock<std::mutex> TakeLock() {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) {
      lock.lock();
      ++lock_use_.waited;
    }
    ++lock_use_.taken;
    return lock;
  }

  // Wakes `tasks` of the `idle` workers, or all of them if they are fewer. Each
  // worker that wakes up takes mutex_, so no more are woken than are needed.
  void Wake(int64_t tasks, int idle) {
    if (tasks >= idle) {
      wake_.notify_all();
      return;
    }
    for (int64_t i = 0; i < tasks; ++i) wake_.notify_one();
  }

  void JoinWorkers() {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  struct Task {
    int64_t index;
    int64_t slot;
  };

  struct State;
  using Jobs = std::list<std::unique_ptr<State>>;

  // A job in progress. mutex_ guards all members except `job`, `stop` and
  // `phases`, which do not change, and `next_task`. `phase` does not change
  // while a worker has a turn with the job.
  struct State : JobQueue::Entry {
    State(const JobOrder& order, int threads)
        : Entry(order), clock(threads, Clock::now()) {}

    Duration work_time{0};  // as estimated when the job was submitted
    TileJob* job = nullptr;
    const StopSignal* stop = nullptr;
    Done done;
    std::vector<TileJob::Phase> phases;
    std::vector<int64_t> free_slots;
    std::vector<Task> yielded;
    int64_t phase = 0;
    int64_t running = 0;      // tasks that a worker holds now
    int64_t all_tasks = 0;    // of all phases
    int64_t later_tasks = 0;  // of the phases after this one
    int64_t stopped = 0;  // tasks that were running when the job was stopped
    Duration used{0};     // the worker time of the job until now
    absl::Status status;
    JobClock clock;
    Jobs::iterator place;

    // The phase's first task that never ran, or a number beyond its last task.
    // Workers change it during their turns, without mutex_, so it has a cache
    // line of its own.
    alignas(64) std::atomic<int64_t> next_task{0};

    bool over() const { return static_cast<size_t>(phase) >= phases.size(); }
    const TileJob::Phase& current() const {
      return phases[static_cast<size_t>(phase)];
    }
    void BeginPhase(int64_t index) {
      phase = index;
      next_task.store(0, std::memory_order_relaxed);
      if (over()) return;
      later_tasks -= current().tasks;
      // Slots are taken from the end of the list, so the lowest is taken first.
      free_slots.resize(static_cast<size_t>(current().slots));
      std::iota(free_slots.rbegin(), free_slots.rend(), 0);
    }
    // Returns how many tasks of this phase never ran.
    int64_t unstarted_now() const {
      if (over()) return 0;
      return std::max<int64_t>(
          0, current().tasks - next_task.load(std::memory_order_relaxed));
    }
    // Returns how many tasks never ran.
    int64_t unstarted() const { return unstarted_now() + later_tasks; }
    // Returns how many more tasks could start or continue now.
    int64_t ready_tasks() const {
      return static_cast<int64_t>(yielded.size()) +
             std::min(static_cast<int64_t>(free_slots.size()), unstarted_now());
    }
    // Returns nothing if workers have taken all tasks during their turns.
    std::optional<Task> Take() {
      if (!yielded.empty()) {
        // The task that has waited longest runs first, because tasks may wait
        // for one another.
        const Task task = yielded.front();
        yielded.erase(yielded.begin());
        return task;
      }
      if (free_slots.empty()) return std::nullopt;
      const std::optional<Task> task = TakeNew(free_slots.back());
      if (task) free_slots.pop_back();
      return task;
    }
    // Returns the next task that never ran, if there is one. A worker that has
    // a turn with the job can call it without mutex_.
    std::optional<Task> TakeNew(int64_t slot) {
      const int64_t index = next_task.fetch_add(1, std::memory_order_relaxed);
      if (index >= current().tasks) return std::nullopt;
      return Task{index, slot};
    }
    // Returns the worker time that the job still takes. The number of tasks
    // left says less than the time, because the first task of a job may do some
    // of the work for all, such as packing keys. But once the job has taken
    // longer than estimated, this number is all there is. The rest will then
    // take longer, too.
    Duration Left() const {
      if (order().work.operations <= 0) return used + kUnknownTime;
      if (used < work_time) return work_time - used;
      return Duration(
          static_cast<int64_t>(PartLeft() * static_cast<double>(used.count())));
    }
    // Returns which part of the job is not done. A task in progress counts as
    // half done.
    double PartLeft() const {
      const auto in_progress =
          running + stopped + static_cast<int64_t>(yielded.size());
      return (static_cast<double>(unstarted()) +
              static_cast<double>(in_progress) / 2) /
             static_cast<double>(std::max<int64_t>(all_tasks, 1));
    }
  };

  // What a worker does now.
  struct Running {
    const State* state = nullptr;  // guarded by mutex_
    // Asks the task to yield before its quantum is over.
    std::atomic<bool> interrupted{false};
  };

  class Control : public SliceControl {
   public:
    Control(const Impl& impl, const StopSignal* stop,
            const std::atomic<bool>& interrupted)
        : impl_(impl), stop_(stop), interrupted_(interrupted) {}

    // Call it before each task.
    void Begin(Clock::time_point now) {
      began_ = now;
      asked_to_yield_ = false;
    }

    bool ShouldStop() override {
      return impl_.closing_.load(std::memory_order_relaxed) ||
             (stop_ != nullptr && stop_->ShouldStop());
    }
    bool ShouldYield() override {
      asked_to_yield_ = interrupted_.load(std::memory_order_relaxed) ||
                        (impl_.queued_.load(std::memory_order_relaxed) > 1 &&
                         Clock::now() - began_ >= JobQueue::kQuantum);
      return asked_to_yield_;
    }

    // Returns whether a worker whose turn began at `turn_began`, and whose task
    // is done, may begin the next one in the same turn. The turn should not
    // become longer than a quantum.
    bool MayGoOn(Clock::time_point turn_began, Clock::time_point now) {
      return now - turn_began + (now - began_) <= JobQueue::kQuantum &&
             !interrupted_.load(std::memory_order_relaxed) && !ShouldStop();
    }
    // Returns whether the task last heard that it should yield. A task that
    // yields without that waits for another one.
    bool asked_to_yield() const { return asked_to_yield_; }

   private:
    const Impl& impl_;
    const StopSignal* stop_;
    const std::atomic<bool>& interrupted_;
    Clock::time_point began_;
    bool asked_to_yield_ = false;
  };

  // The functions below need mutex_.

  Duration Estimate(const JobOrder& order) const {
    return order.work.operations > 0 ? rate_.Estimate(order.work)
                                     : Duration(kUnknownTime);
  }

  // Asks the workers that `added` should have to yield, `width` at most.
  void Interrupt(const State& added, int64_t width) {
    const Clock::time_point now = Clock::now();
    for (Running& running : running_) {
      if (width == 0) return;
      if (running.state == nullptr ||
          !queue_.Precedes(added, *running.state, now)) {
        continue;
      }
      running.interrupted.store(true, std::memory_order_relaxed);
      --width;
    }
  }

  // Moves on from finished phases. Returns whether nothing of the job is left.
  static bool Advance(State& state) {
    if (!state.status.ok()) return state.running == 0;
    while (state.running == 0 && state.yielded.empty() && !state.over() &&
           state.unstarted_now() == 0) {
      state.BeginPhase(state.phase + 1);
    }
    return state.over();
  }

  void CheckStop(State& state) const {
    if (!state.status.ok()) return;
    if (closing_.load(std::memory_order_relaxed)) {
      state.status = absl::CancelledError("shutting down");
    } else if (state.stop != nullptr) {
      state.status = state.stop->Check();
    }
  }

  // Call it before the number of running or of ready tasks of `state` changes.
  void Tick(State& state, Clock::time_point now) const {
    state.clock.Advance(state.running, state.ready_tasks(), jobs_.size() == 1,
                        now);
  }

  // Ends a job whose deadline cannot be met any more, if others could use its
  // time. Does not judge a job whose last tasks have begun, because it is not
  // known how much of these is left.
  void CheckHopeless(State& state, Clock::time_point now) const {
    if (!state.status.ok() || jobs_.size() < 2 || state.unstarted() == 0 ||
        !queue_.IsHopeless(state, now)) {
      return;
    }
    state.status = absl::DeadlineExceededError(
        "the call could no longer end before its deadline");
  }

  // Measures the rate of a job that is over and took `time`. If it was stopped,
  // what it has done counts. Otherwise only jobs that were fast enough to end
  // before their deadlines would count, and estimates would be too low.
  void Measure(attnd::Work work, double done, Duration time) {
    constexpr double kEnoughToJudge = 0.25;
    if (done < kEnoughToJudge) return;
    work.operations =
        static_cast<int64_t>(static_cast<double>(work.operations) * done);
    rate_.Observe(work, time);
  }

  // Takes a job that is over out of the lists. Call End for it.
  std::unique_ptr<State> Detach(State& state) {
    Tick(state, Clock::now());
    queue_.Remove(state);
    std::unique_ptr<State> owner = std::move(*state.place);
    jobs_.erase(state.place);
    queued_.fetch_sub(1, std::memory_order_relaxed);
    return owner;
  }

  // Reports the end of a job. Call it without mutex_.
  static void End(std::unique_ptr<State> state) {
    state->done(std::move(state->status), state->clock.times());
    // `done` may own what the job computed with. That is freed here.
  }

  void Finish(State& state, std::unique_lock<std::mutex>& lock) {
    std::unique_ptr<State> owner = Detach(state);
    const attnd::Work work = owner->order().work;
    const double done = 1 - owner->PartLeft();
    const Duration used = owner->used;
    lock.unlock();
    // The worker makes the answer in `done`. That is part of what a job costs.
    const Clock::time_point ended = Clock::now();
    End(std::move(owner));
    const Duration ending = Clock::now() - ended;
    lock = TakeLock();
    Measure(work, done, used + ending);
    if (closing_ && jobs_.empty()) wake_.notify_all();
  }

  // Ends the jobs that wait and should stop. The others find out themselves.
  // Returns whether mutex_ was released meanwhile.
  bool Sweep(Clock::time_point now, std::unique_lock<std::mutex>& lock) {
    if (now < next_sweep_ && !closing_) return false;
    next_sweep_ = now + kSweepInterval;
    std::vector<std::unique_ptr<State>> ended;
    for (auto it = jobs_.begin(); it != jobs_.end();) {
      State& state = **it++;
      if (state.running > 0) continue;
      CheckStop(state);
      if (!state.status.ok()) ended.push_back(Detach(state));
    }
    if (ended.empty()) return false;
    lock.unlock();
    for (std::unique_ptr<State>& state : ended) End(std::move(state));
    lock = TakeLock();
    if (closing_ && jobs_.empty()) wake_.notify_all();
    return true;
  }

  // Gives the job whose turn it is a turn with this worker: one task, and then
  // further ones as long as they are expected to end within a quantum. These
  // are taken without mutex_, so that many workers with short tasks do not wait
  // for each other. Returns the job if its task waits for another task, and
  // otherwise null.
  State* RunTurn(const JobQueue::Turn& turn, Clock::time_point now,
                 Running& running, std::unique_lock<std::mutex>& lock) {
    auto& state = static_cast<State&>(*turn.entry);
    CheckStop(state);
    CheckHopeless(state, now);
    std::optional<Task> task;
    if (!Advance(state) && state.status.ok()) {
      Tick(state, now);
      task = state.Take();
    }
    if (!task) {
      queue_.End(turn, Duration(0), state.left());
      queue_.SetReady(state, false);
      if (state.running == 0) Finish(state, lock);
      return nullptr;
    }
    ++state.running;
    queue_.SetReady(state, state.ready_tasks() > 0);
    running.state = &state;
    running.interrupted.store(false, std::memory_order_relaxed);
    busy_.fetch_add(1, std::memory_order_relaxed);
    const int64_t phase = state.phase;
    lock.unlock();
    Control control(*this, state.stop, running.interrupted);
    TileJob::Slice slice = TileJob::Slice::kDone;
    const Clock::time_point began = Clock::now();
    Clock::time_point ended = began;
    for (std::optional<Task> next = task; next;) {
      task = next;
      control.Begin(ended);
      slice = state.job->Run(phase, task->index, task->slot, control);
      ended = Clock::now();
      next.reset();
      if (slice == TileJob::Slice::kDone && control.MayGoOn(began, ended)) {
        next = state.TakeNew(task->slot);
      }
    }
    const Duration used = ended - began;
    lock = TakeLock();
    // This comes before the end of the job, so that a thread that has the job's
    // result finds the workers idle.
    busy_.fetch_sub(1, std::memory_order_relaxed);
    running.state = nullptr;
    Tick(state, Clock::now());
    --state.running;
    state.used += used;
    if (slice == TileJob::Slice::kYield) {
      state.yielded.push_back(*task);
    } else {
      state.free_slots.push_back(task->slot);
    }
    CheckStop(state);
    // Such a task says that it is done, but has returned early.
    if (!state.status.ok() && slice == TileJob::Slice::kDone) ++state.stopped;
    const int64_t old_phase = state.phase;
    const bool over = Advance(state);
    queue_.End(turn, used, state.Left());
    queue_.SetReady(state, state.status.ok() && state.ready_tasks() > 0);
    if (over) {
      Finish(state, lock);
      return nullptr;
    }
    if (state.phase != old_phase) {
      // Workers that found no task may find one now.
      Wake(state.ready_tasks(), idle_);
    }
    return slice == TileJob::Slice::kYield && !control.asked_to_yield()
               ? &state
               : nullptr;
  }

  void Work(Running& running) {
#ifdef __linux__
    pthread_setname_np(pthread_self(), "attnd-worker");  // for top -H
#endif
    std::unique_lock lock = TakeLock();
    State* waits = nullptr;
    while (true) {
      Clock::time_point now = Clock::now();
      if (Sweep(now, lock)) {
        waits = nullptr;     // another thread may have ended it
        now = Clock::now();  // and may have read the clock since then
      }
      const JobQueue::Turn turn = queue_.Begin(now, waits);
      waits = nullptr;
      if (turn.entry != nullptr) {
        waits = RunTurn(turn, now, running, lock);
        continue;
      }
      if (closing_ && jobs_.empty()) return;
      ++idle_;
      wake_.wait(lock);
      ++lock_use_.taken;
      --idle_;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  // mutex_ guards the next seven members.
  Jobs jobs_;
  JobQueue queue_;
  WorkRate rate_;
  std::vector<Running> running_;  // one for each worker
  int idle_ = 0;                  // workers that wait for a task
  Clock::time_point next_sweep_;
  LockUse lock_use_;
  std::atomic<int64_t> queued_{0};  // jobs_.size(), readable without the lock
  std::atomic<int> busy_{0};        // workers that run a task
  std::atomic<bool> closing_{false};
  std::vector<std::thread> workers_;
};

void JobTicket::GiveBack() {
  if (entry_ != nullptr) scheduler_->impl_->GiveBack(*entry_);
  entry_ = nullptr;
}

JobTicket& JobTicket::operator=(JobTicket&& other) noexcept {
  std::swap(scheduler_, other.scheduler_);
  std::swap(entry_, other.entry_);
  return *this;
}

TileScheduler::TileScheduler(int threads)
    : impl_(std::make_unique<Impl>(std::max(1, threads))) {}

TileScheduler::~TileScheduler() = default;

int TileScheduler::threads() const { return impl_->threads(); }
int TileScheduler::busy_threads() const { return impl_->busy_threads(); }
TileScheduler::LockUse TileScheduler::lock_use() const {
  return impl_->lock_use();
}

void TileScheduler::Submit(TileJob* job, const StopSignal* stop, Done done,
                           const JobOrder& order, JobTicket ticket) {
  impl_->Submit(job, stop, std::move(done), order, std::move(ticket.entry_));
}

DeadlineForecast TileScheduler::Admit(const JobOrder& order, int64_t width,
                                      JobTicket& ticket) {
  ticket.GiveBack();
  ticket.scheduler_ = this;
  return impl_->Admit(order, width, ticket.entry_);
}

absl::Status TileScheduler::Run(TileJob* job, const StopSignal* stop,
                                JobTimes* times) {
  std::mutex mutex;
  std::condition_variable finished;
  std::optional<absl::Status> result;
  Submit(job, stop, [&](absl::Status status, const JobTimes& job_times) {
    const std::lock_guard lock(mutex);
    if (times != nullptr) *times = job_times;
    result = std::move(status);
    finished.notify_one();
  });
  std::unique_lock lock(mutex);
  finished.wait(lock, [&] { return result.has_value(); });
  return *std::move(result);
}

}  // namespace attnd
