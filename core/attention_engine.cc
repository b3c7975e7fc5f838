#include "core/attention_engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "core/backward_plan.h"
#include "core/kernels/flash_attention.h"
#include "core/kernels/flash_backward.h"

namespace attnd {
namespace {

// What runs in the thread that submits it: less work than a worker costs, which
// has to wake and to wake others (67 us), on memory that fits a core's own
// cache, in tasks that take 0.24 us each whatever they compute. docs/adr/0008
// has the measurement.
constexpr int64_t kHereFlops = int64_t{1} << 20;
constexpr int64_t kHereBytes = int64_t{1} << 20;
constexpr int64_t kHereTasks = 256;

int64_t TasksOf(const KernelPlan& plan) {
  return plan.tile_tasks + plan.merge_tasks + plan.padding_tasks;
}

int64_t TasksOf(const BackwardPlan& plan) {
  return plan.key_tiles() + plan.key_runs() + 2 * plan.row_tiles();
}

bool RunsHere(const AttentionProblem& problem, const MemoryEstimate& estimate,
              int64_t tasks) {
  // Keys that no row sees are not touched, but where they are packed, and then
  // the workspace has room for them. A key that is seen takes two operations an
  // element, which has four bytes at most.
  const int64_t kv_bytes = problem.key_bytes() + problem.value_bytes();
  return tasks <= kHereTasks && estimate.flops <= kHereFlops &&
         estimate.flash_bytes - kv_bytes +
                 std::min(kv_bytes, 2 * estimate.flops) <=
             kHereBytes;
}

// Nobody else waits for this thread to be free.
class HereControl : public SliceControl {
 public:
  explicit HereControl(const StopSignal* stop) : stop_(stop) {}
  bool ShouldStop() override { return stop_ != nullptr && stop_->ShouldStop(); }
  bool ShouldYield() override { return false; }

 private:
  const StopSignal* stop_;
};

// Runs the job's tasks one after the other in one slot. Which tasks there are
// does not depend on where they run, so neither do the bits of the answer.
absl::Status RunHere(TileJob& job, const StopSignal* stop) {
  HereControl control(stop);
  const std::vector<TileJob::Phase> phases = job.Phases();
  for (size_t phase = 0; phase < phases.size(); ++phase) {
    for (int64_t task = 0; task < phases[phase].tasks; ++task) {
      if (stop != nullptr) {
        if (absl::Status status = stop->Check(); !status.ok()) return status;
      }
      while (job.Run(static_cast<int64_t>(phase), task, 0, control) ==
             TileJob::Slice::kYield) {
      }
    }
  }
  return stop == nullptr ? absl::OkStatus() : stop->Check();
}

// Whether keys and values can be loaded by whoever packs them: where all that
// are seen are packed, from rows that are one after the other.
bool LoadsWithPacking(const AttentionProblem& problem, const KernelPlan& plan,
                      const InputSource* source) {
  return source != nullptr && source->pieces_before_keys() < source->pieces() &&
         plan.packing_bytes > 0 && !plan.any_direct &&
         problem.params().layout == Layout::kBhsd;
}

MachineInfo ChooseMachine(const EngineOptions& options) {
  MachineInfo machine = MachineInfo::Detect();
  if (options.force_isa) machine.isa = *options.force_isa;
  return machine;
}

}  // namespace

// One call: first what is still to be loaded, then its tiles, then what joins
// them, then the rows that are in none. Keys and values that are packed are
// loaded right before, by the worker that packs them: it finds them in its
// cache then.
class AttentionEngine::Job : public TileJob {
 public:
  Job(AttentionProblem problem, KernelPlan plan,
      const AttentionBuffers& buffers, InputSource* source, int threads,
      Workspace workspace)
      : problem_(std::move(problem)),
        plan_(std::move(plan)),
        threads_(threads),
        kernel_(GetFlashKernel(plan_.isa)),
        workspace_(std::move(workspace)),
        source_(source),
        flash_(problem_, plan_, buffers, threads_, workspace_.data(),
               LoadsWithPacking(problem_, plan_, source_) ? source_ : nullptr) {
    for (int64_t slot = 0; slot < plan_.Slots(threads_); ++slot) {
      kernel_.init_slot(flash_.Slot(slot));
    }
  }

  std::vector<Phase> Phases() const override {
    const int64_t pieces = source_ == nullptr ? 0
                           : flash_.source != nullptr
                               ? source_->pieces_before_keys()
                               : source_->pieces();
    return {{.tasks = pieces, .slots = threads_},
            {.tasks = plan_.tile_tasks, .slots = plan_.Slots(threads_)},
            {.tasks = plan_.merge_tasks, .slots = threads_},
            {.tasks = plan_.padding_tasks, .slots = threads_}};
  }

  Slice Run(int64_t phase, int64_t task, int64_t slot,
            SliceControl& control) override {
    switch (phase) {
      case 0:
        source_->LoadPiece(task);
        return Slice::kDone;
      case 1:
        return kernel_.run_tile(flash_, task, flash_.Slot(slot), control);
      case 2:
        kernel_.merge(flash_, task);
        return Slice::kDone;
      default:
        flash_.WritePadding(task);
        return Slice::kDone;
    }
  }

 private:
  const AttentionProblem problem_;
  const KernelPlan plan_;
  const int64_t threads_;
  const FlashKernel& kernel_;
  const Workspace workspace_;
  InputSource* const source_;
  const FlashJob flash_;
};

// The gradients: loading, packing and rows' numbers first, then tiles of keys,
// then what is written of the rows.
class AttentionEngine::GradientJob : public TileJob {
 public:
  GradientJob(AttentionProblem problem, BackwardPlan plan,
              const BackwardBuffers& buffers, InputSource* source, int threads,
              Workspace workspace)
      : problem_(std::move(problem)),
        plan_(std::move(plan)),
        threads_(threads),
        kernel_(GetBackwardKernel(plan_.isa())),
        workspace_(std::move(workspace)),
        job_(problem_, plan_, buffers, plan_.Slots(threads), workspace_.data()),
        source_(source) {}

  std::vector<Phase> Phases() const override {
    return {{.tasks = source_ == nullptr ? 0 : source_->pieces(),
             .slots = threads_},
            {.tasks = plan_.key_tiles(), .slots = threads_},
            {.tasks = plan_.row_tiles(), .slots = plan_.Slots(threads_)},
            {.tasks = plan_.key_runs(), .slots = plan_.Slots(threads_)},
            {.tasks = plan_.row_tiles(), .slots = threads_}};
  }

  Slice Run(int64_t phase, int64_t task, int64_t slot,
            SliceControl& control) override {
    switch (phase) {
      case 0:
        source_->LoadPiece(task);
        return Slice::kDone;
      case 1:
        kernel_.pack(job_, task);
        return Slice::kDone;
      case 2:
        kernel_.prepare_rows(job_, task, job_.Slot(slot));
        return Slice::kDone;
      case 3:
        return kernel_.run_tile(job_, task, job_.Slot(slot), control);
      default:
        kernel_.finish_rows(job_, task);
        return Slice::kDone;
    }
  }

 private:
  const AttentionProblem problem_;
  const BackwardPlan plan_;
  const int64_t threads_;
  const BackwardKernel& kernel_;
  const Workspace workspace_;
  const BackwardJob job_;
  InputSource* const source_;
};

AttentionEngine::AttentionEngine(const EngineOptions& options)
    : machine_(ChooseMachine(options)),
      scheduler_(options.threads > 0 ? options.threads : AvailableThreads()),
      estimator_(machine_, scheduler_.threads()) {}

AttentionEngine::~AttentionEngine() = default;

template <typename J, typename Plan, typename Buffers>
void AttentionEngine::Start(const AttentionProblem& problem, Plan plan,
                            const Buffers& buffers, InputSource* source,
                            const absl::StatusOr<MemoryEstimate>& estimate,
                            RunStats stats, const StopSignal* stop, Done done) {
  if (!estimate.ok()) {
    done(estimate.status(), {});
    return;
  }
  absl::StatusOr<Workspace> workspace =
      pool_.Reserve(estimate->workspace_bytes);
  if (!workspace.ok()) {
    done(workspace.status(), {});
    return;
  }
  stats.threads = threads();
  stats.flops = estimate->flops;
  stats.workspace_bytes = estimate->workspace_bytes;
  if (RunsHere(problem, *estimate, TasksOf(plan))) {
    std::optional<J> job(std::in_place, problem, std::move(plan), buffers,
                         source, threads(), *std::move(workspace));
    const auto began = std::chrono::steady_clock::now();
    absl::Status status = RunHere(*job, stop);
    stats.compute_time = std::chrono::steady_clock::now() - began;
    job.reset();  // the workspace goes before the answer
    done(std::move(status), stats);
    return;
  }
  // std::function wants a copyable owner.
  auto job = std::make_shared<J>(problem, std::move(plan), buffers, source,
                                 threads(), *std::move(workspace));
  TileJob* const raw_job = job.get();
  scheduler_.Submit(raw_job, stop,
                    [job = std::move(job), stats, done = std::move(done)](
                        absl::Status status, const JobTimes& times) mutable {
                      job.reset();  // the workspace goes before the answer
                      stats.queue_time = times.queued;
                      stats.compute_time = times.running;
                      done(std::move(status), stats);
                    });
}

void AttentionEngine::Submit(const AttentionProblem& problem,
                             const AttentionBuffers& buffers,
                             const StopSignal* stop, Done done,
                             InputSource* source) {
  KernelPlan plan = MakeKernelPlan(problem, machine_);
  RunStats stats;
  stats.isa = plan.isa;
  stats.kernel = plan.variant;
  stats.tile_q = plan.tile_q;
  stats.tile_kv = plan.tile_kv;
  const absl::StatusOr<MemoryEstimate> estimate =
      estimator_.Estimate(problem, plan);
  Start<Job>(problem, std::move(plan), buffers, source, estimate, stats, stop,
             std::move(done));
}

void AttentionEngine::SubmitBackward(const AttentionProblem& problem,
                                     const BackwardBuffers& buffers,
                                     const StopSignal* stop, Done done,
                                     InputSource* source) {
  if (absl::Status status = problem.CheckGradients(); !status.ok()) {
    return done(status, {});
  }
  BackwardPlan plan(problem, machine_);
  RunStats stats;
  stats.isa = plan.isa();
  stats.kernel = plan.parts() > 1 ? "backward_bf16x3" : "backward";
  stats.tile_q = plan.tile_rows();
  stats.tile_kv = BackwardPlan::kTileKeys;
  const absl::StatusOr<MemoryEstimate> estimate =
      estimator_.EstimateBackward(problem, plan);
  Start<GradientJob>(problem, std::move(plan), buffers, source, estimate, stats,
                     stop, std::move(done));
}

namespace {

// Waits for what `submit` starts.
template <typename Submit>
absl::StatusOr<RunStats> Await(const Submit& submit) {
  std::mutex mutex;
  std::condition_variable finished;
  std::optional<absl::StatusOr<RunStats>> result;
  submit([&](absl::Status status, const RunStats& stats) {
    const std::lock_guard lock(mutex);
    if (status.ok()) {
      result = stats;
    } else {
      result = std::move(status);
    }
    finished.notify_one();
  });
  std::unique_lock lock(mutex);
  finished.wait(lock, [&] { return result.has_value(); });
  return *std::move(result);
}

}  // namespace

absl::StatusOr<RunStats> AttentionEngine::Run(const AttentionProblem& problem,
                                              const AttentionBuffers& buffers,
                                              const StopSignal* stop) {
  return Await(
      [&](Done done) { Submit(problem, buffers, stop, std::move(done)); });
}

absl::StatusOr<RunStats> AttentionEngine::RunBackward(
    const AttentionProblem& problem, const BackwardBuffers& buffers,
    const StopSignal* stop) {
  return Await([&](Done done) {
    SubmitBackward(problem, buffers, stop, std::move(done));
  });
}

}  // namespace attnd
