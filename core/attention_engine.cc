#include "core/attention_engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "core/attention_jobs.h"
#include "core/backward_plan.h"

namespace attnd {
namespace {

// A problem that is within all these limits runs in the thread that submits it.
// Then it costs less than waking a worker, which may have to wake others (67
// us). Its memory fits a core's own cache, and each of its tasks takes 0.24 us
// whatever it computes. docs/adr/0008 has the measurement.
constexpr int64_t kMaxInlineFlops = int64_t{1} << 20;
constexpr int64_t kMaxInlineBytes = int64_t{1} << 20;
constexpr int64_t kMaxInlineTasks = 256;

int64_t TasksOf(const KernelPlan& plan) {
  return plan.tile_tasks + plan.merge_tasks + plan.padding_tasks;
}

int64_t TasksOf(const BackwardPlan& plan) {
  return plan.key_tiles() + plan.key_runs() + 2 * plan.row_tiles();
}

bool RunsInline(const AttentionProblem& problem, const MemoryEstimate& estimate,
                int64_t tasks) {
  // The job does not read keys that no row sees, unless it packs them, and then
  // the workspace has space for them. A key that a row sees takes two
  // operations for each element, and an element has at most four bytes.
  const int64_t kv_bytes = problem.key_bytes() + problem.value_bytes();
  return tasks <= kMaxInlineTasks && estimate.flops <= kMaxInlineFlops &&
         estimate.flash_bytes - kv_bytes +
                 std::min(kv_bytes, 2 * estimate.flops) <=
             kMaxInlineBytes;
}

// Never asks a task to yield, because no other job waits for this thread.
class InlineControl : public SliceControl {
 public:
  explicit InlineControl(const StopSignal* stop) : stop_(stop) {}
  bool ShouldStop() override { return stop_ != nullptr && stop_->ShouldStop(); }
  bool ShouldYield() override { return false; }

 private:
  const StopSignal* stop_;
};

// Runs the job's tasks one after the other in one slot. Which tasks there are
// does not depend on where they run, so neither do the bits of the answer.
absl::Status RunInline(TileJob& job, const StopSignal* stop) {
  InlineControl control(stop);
  const std::vector<TileJob::Phase> phases = job.Phases();
  for (size_t phase = 0; phase < phases.size(); ++phase) {
    for (int64_t task = 0; task < phases[phase].tasks; ++task) {
      if (stop != nullptr) ATTND_RETURN_IF_ERROR(stop->Check());
      while (job.Run(static_cast<int64_t>(phase), task, 0, control) ==
             TileJob::Slice::kYield) {
      }
    }
  }
  return stop == nullptr ? absl::OkStatus() : stop->Check();
}

// Problems with the same kind of tile and about the same number of operations
// for each byte take about the same time for an operation: few operations for a
// byte are limited by memory, and many by arithmetic.
Work WorkOf(size_t tile_kind, const MemoryEstimate& estimate) {
  constexpr int kIntensities = 6;
  static_assert((kNumTileKinds + kNumBackwardKinds) * kIntensities <=
                WorkRate::kKinds);
  int intensity = 0;
  int64_t operations = estimate.flops / 4;
  const int64_t bytes = estimate.input_bytes + estimate.output_bytes;
  while (operations > bytes && intensity < kIntensities - 1) {
    operations /= 4;
    ++intensity;
  }
  return {.kind = static_cast<int>(tile_kind) * kIntensities + intensity,
          .operations = estimate.flops};
}

Work WorkOf(const KernelPlan& plan, const MemoryEstimate& estimate) {
  return WorkOf(static_cast<size_t>(plan.tiled_kind), estimate);
}

Work WorkOf(const BackwardPlan& plan, const MemoryEstimate& estimate) {
  return WorkOf(kNumTileKinds + static_cast<size_t>(plan.tiled_kind()),
                estimate);
}

MachineInfo ChooseMachine(const EngineOptions& options) {
  MachineInfo machine = MachineInfo::Detect();
  if (options.force_isa) machine.isa = *options.force_isa;
  return machine;
}

}  // namespace

AttentionEngine::AttentionEngine(const EngineOptions& options)
    : machine_(ChooseMachine(options)),
      scheduler_(options.threads > 0 ? options.threads : AvailableThreads()),
      estimator_(machine_, scheduler_.threads()) {}

AttentionEngine::~AttentionEngine() = default;

void AttentionEngine::Start(const AttentionProblem& problem, int64_t tasks,
                            const MemoryEstimate& estimate, RunStats stats,
                            const StopSignal* stop, Done done,
                            const JobOrder& order, JobTicket ticket,
                            MakeJob make_job) {
  if (estimate.flash_bytes == kMaxBytes) {
    done(BytesOutOfRange(), {});
    return;
  }
  absl::StatusOr<Workspace> workspace = pool_.Reserve(estimate.workspace_bytes);
  if (!workspace.ok()) {
    done(workspace.status(), {});
    return;
  }
  stats.threads = threads();
  stats.flops = estimate.flops;
  stats.workspace_bytes = estimate.workspace_bytes;
  std::unique_ptr<TileJob> job = make_job(*std::move(workspace));
  if (RunsInline(problem, estimate, tasks)) {
    const auto began = std::chrono::steady_clock::now();
    absl::Status status = RunInline(*job, stop);
    stats.compute_time = std::chrono::steady_clock::now() - began;
    job.reset();  // frees the workspace before the answer
    done(std::move(status), stats);
    return;
  }
  TileJob* const raw_job = job.get();
  // Shared because std::function wants a copyable owner.
  scheduler_.Submit(
      raw_job, stop,
      [job = std::shared_ptr<TileJob>(std::move(job)), stats,
       done = std::move(done)](absl::Status status,
                               const JobTimes& times) mutable {
        job.reset();  // frees the workspace before the answer
        stats.queue_time = times.queued;
        stats.compute_time = times.running;
        done(std::move(status), stats);
      },
      order, std::move(ticket));
}

void AttentionEngine::Submit(const AttentionProblem& problem,
                             const AttentionBuffers& buffers,
                             const StopSignal* stop, Done done,
                             InputSource* source, JobOrder order,
                             JobTicket ticket) {
  KernelPlan plan = MakeKernelPlan(problem, machine_);
  RunStats stats;
  stats.isa = plan.isa;
  stats.kernel = plan.variant;
  stats.tile_q = plan.tile_q;
  stats.tile_kv = plan.tile_kv;
  const MemoryEstimate estimate = estimator_.Estimate(problem, plan);
  order.work = WorkOf(plan, estimate);
  Start(problem, TasksOf(plan), estimate, stats, stop, std::move(done), order,
        std::move(ticket), [&](Workspace workspace) {
          return MakeForwardJob(problem, std::move(plan), buffers, source,
                                threads(), std::move(workspace));
        });
}

void AttentionEngine::SubmitBackward(const AttentionProblem& problem,
                                     const BackwardBuffers& buffers,
                                     const StopSignal* stop, Done done,
                                     InputSource* source, JobOrder order,
                                     JobTicket ticket) {
  if (absl::Status status = problem.CheckGradients(); !status.ok()) {
    return done(status, {});
  }
  BackwardPlan plan(problem, machine_);
  RunStats stats;
  stats.isa = plan.isa();
  stats.kernel = plan.variant();
  stats.tile_q = plan.tile_rows();
  stats.tile_kv = BackwardPlan::kTileKeys;
  const MemoryEstimate estimate = estimator_.EstimateBackward(problem, plan);
  order.work = WorkOf(plan, estimate);
  Start(problem, TasksOf(plan), estimate, stats, stop, std::move(done), order,
        std::move(ticket), [&](Workspace workspace) {
          return MakeBackwardJob(problem, std::move(plan), buffers, source,
                                 threads(), std::move(workspace));
        });
}

DeadlineForecast AttentionEngine::Admit(const AttentionProblem& problem,
                                        bool backward,
                                        const MemoryEstimate& estimate,
                                        JobOrder order, JobTicket& ticket) {
  // A call that is as small as those that run where they arrive takes less time
  // than this decision is exact to.
  if (order.deadline == SteadyTime::max() ||
      estimate.flops <= kMaxInlineFlops) {
    return {};
  }
  if (backward) {
    const BackwardPlan plan(problem, machine_);
    order.work = WorkOf(plan, estimate);
    return scheduler_.Admit(order, plan.key_runs(), ticket);
  }
  const KernelPlan plan = MakeKernelPlan(problem, machine_);
  order.work = WorkOf(plan, estimate);
  return scheduler_.Admit(order, plan.tile_tasks, ticket);
}

namespace {

// Calls `submit` with a `done` function and waits until that is called. Returns
// what it was called with.
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
