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

// How long a task keeps its worker while other jobs wait. This is long compared
// to the cost of a switch, and short compared to a caller's patience.
constexpr std::chrono::microseconds kQuantum{500};

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
  explicit Impl(int threads) {
    workers_.reserve(static_cast<size_t>(threads));
    try {
      for (int i = 0; i < threads; ++i) {
        workers_.emplace_back([this] { Work(); });
      }
    } catch (...) {
      JoinWorkers();
      throw;
    }
  }

  ~Impl() { JoinWorkers(); }

  int threads() const { return static_cast<int>(workers_.size()); }
  int busy_threads() const { return busy_.load(std::memory_order_relaxed); }

  void Submit(TileJob* job, const StopSignal* stop, Done done,
              const JobOrder& order) {
    auto state = std::make_unique<State>();
    state->job = job;
    state->stop = stop;
    state->done = std::move(done);
    state->order = order;
    state->phases = job->Phases();
    state->submitted = Clock::now();
    int64_t most_slots = 1;
    int64_t most_at_once = 1;
    for (const TileJob::Phase& phase : state->phases) {
      most_slots = std::max(most_slots, phase.slots);
      most_at_once = std::max(most_at_once, std::min(phase.slots, phase.tasks));
    }
    // The lists are reserved here so that nothing allocates while the job runs.
    state->free_slots.reserve(static_cast<size_t>(most_slots));
    state->yielded.reserve(static_cast<size_t>(most_slots));
    state->BeginPhase(0);
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(state));
      queued_.fetch_add(1, std::memory_order_relaxed);
    }
    if (most_at_once > 1) {
      wake_.notify_all();
    } else {
      wake_.notify_one();
    }
  }

 private:
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

  // A job in progress. mutex_ guards all members except `job` and `stop`, which
  // do not change.
  struct State {
    TileJob* job = nullptr;
    const StopSignal* stop = nullptr;
    Done done;
    JobOrder order;
    std::vector<TileJob::Phase> phases;
    std::vector<int64_t> free_slots;
    std::vector<Task> yielded;
    int64_t phase = 0;
    int64_t next_task = 0;  // the phase's first task that never ran
    int64_t running = 0;    // tasks that a worker holds now
    bool started = false;
    absl::Status status;
    Clock::time_point submitted;
    Clock::time_point began;

    bool over() const { return static_cast<size_t>(phase) >= phases.size(); }
    const TileJob::Phase& current() const {
      return phases[static_cast<size_t>(phase)];
    }
    void BeginPhase(int64_t index) {
      phase = index;
      next_task = 0;
      if (over()) return;
      // Slots are taken from the end of the list, so the lowest is taken first.
      free_slots.resize(static_cast<size_t>(current().slots));
      std::iota(free_slots.rbegin(), free_slots.rend(), 0);
    }
  };
  using Jobs = std::list<std::unique_ptr<State>>;

  class Control : public SliceControl {
   public:
    Control(const Impl& impl, const State& state)
        : impl_(impl), stop_(state.stop), began_(Clock::now()) {}

    bool ShouldStop() override {
      return impl_.closing_.load(std::memory_order_relaxed) ||
             (stop_ != nullptr && stop_->ShouldStop());
    }
    bool ShouldYield() override {
      return impl_.queued_.load(std::memory_order_relaxed) > 1 &&
             Clock::now() - began_ >= kQuantum;
    }

   private:
    const Impl& impl_;
    const StopSignal* stop_;
    Clock::time_point began_;
  };

  // Returns the job's next task, or nullopt if none may run now.
  static std::optional<Task> Take(State& state) {
    if (!state.yielded.empty()) {
      // The task that has waited longest runs first, because tasks may wait for
      // one another.
      const Task task = state.yielded.front();
      state.yielded.erase(state.yielded.begin());
      return task;
    }
    if (state.over() || state.free_slots.empty() ||
        state.next_task >= state.current().tasks) {
      return std::nullopt;
    }
    const Task task{state.next_task++, state.free_slots.back()};
    state.free_slots.pop_back();
    return task;
  }

  // Moves on from finished phases. Returns whether nothing of the job is left.
  static bool Advance(State& state) {
    if (!state.status.ok()) return state.running == 0;
    while (state.running == 0 && state.yielded.empty() && !state.over() &&
           state.next_task >= state.current().tasks) {
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

  void Finish(Jobs::iterator it, std::unique_lock<std::mutex>& lock) {
    const std::unique_ptr<State> state = std::move(*it);
    jobs_.erase(it);
    queued_.fetch_sub(1, std::memory_order_relaxed);
    const Clock::time_point now = Clock::now();
    JobTimes times;
    times.queued = (state->started ? state->began : now) - state->submitted;
    if (state->started) times.running = now - state->began;
    lock.unlock();
    state->done(std::move(state->status), times);
    // `done` may own what the job computed with. That is freed here, without
    // the lock.
    state->done = nullptr;
    lock.lock();
    if (closing_ && jobs_.empty()) wake_.notify_all();
  }

  void RunTask(Jobs::iterator it, Task task,
               std::unique_lock<std::mutex>& lock) {
    State& state = **it;
    if (!state.started) {
      state.started = true;
      state.began = Clock::now();
    }
    ++state.running;
    busy_.fetch_add(1, std::memory_order_relaxed);
    // Moves the job to the end of the list, so that jobs take turns.
    jobs_.splice(jobs_.end(), jobs_, it);
    const int64_t phase = state.phase;
    lock.unlock();
    Control control(*this, state);
    const TileJob::Slice slice =
        state.job->Run(phase, task.index, task.slot, control);
    lock.lock();
    // This comes before the end of the job, so that a thread that has the job's
    // result finds the workers idle.
    busy_.fetch_sub(1, std::memory_order_relaxed);
    --state.running;
    if (slice == TileJob::Slice::kYield) {
      state.yielded.push_back(task);
    } else {
      state.free_slots.push_back(task.slot);
    }
    CheckStop(state);
    const int64_t old_phase = state.phase;
    if (Advance(state)) {
      Finish(it, lock);
    } else if (state.phase != old_phase) {
      wake_.notify_all();  // workers that found no task may find one now
    }
  }

  void Work() {
#ifdef __linux__
    pthread_setname_np(pthread_self(), "attnd-worker");  // for top -H
#endif
    std::unique_lock lock(mutex_);
    while (true) {
      bool found = false;
      for (auto it = jobs_.begin(); it != jobs_.end(); ++it) {
        State& state = **it;
        CheckStop(state);
        if (Advance(state)) {
          Finish(it, lock);
          found = true;
          break;
        }
        if (!state.status.ok()) continue;
        if (const std::optional<Task> task = Take(state)) {
          RunTask(it, *task, lock);
          found = true;
          break;
        }
      }
      if (found) continue;
      if (closing_ && jobs_.empty()) return;
      wake_.wait(lock);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  Jobs jobs_;                       // guarded by mutex_
  std::atomic<int64_t> queued_{0};  // jobs_.size(), readable without the lock
  std::atomic<int> busy_{0};        // workers that run a task
  std::atomic<bool> closing_{false};
  std::vector<std::thread> workers_;
};

TileScheduler::TileScheduler(int threads)
    : impl_(std::make_unique<Impl>(std::max(1, threads))) {}

TileScheduler::~TileScheduler() = default;

int TileScheduler::threads() const { return impl_->threads(); }
int TileScheduler::busy_threads() const { return impl_->busy_threads(); }

void TileScheduler::Submit(TileJob* job, const StopSignal* stop, Done done,
                           const JobOrder& order) {
  impl_->Submit(job, stop, std::move(done), order);
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
