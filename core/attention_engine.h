// Computes checked attention problems. A caller submits a problem with a
// function that the engine calls when it is done. The engine plans the problem,
// reserves its workspace, and runs its tasks on a scheduler's workers.
#ifndef ATTND_CORE_ATTENTION_ENGINE_H_
#define ATTND_CORE_ATTENTION_ENGINE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/attention_problem.h"
#include "core/input_source.h"
#include "core/kernel_plan.h"
#include "core/machine.h"
#include "core/memory_estimator.h"
#include "core/tile_scheduler.h"
#include "core/workspace.h"

namespace attnd {

// What the engine reports of a problem that it has computed: the kernel, the
// size of the largest tile, and the threads, time, operations and memory.
struct RunStats {
  Isa isa = Isa::kScalar;
  std::string_view kernel;
  int64_t tile_q = 0;   // query rows
  int64_t tile_kv = 0;  // keys
  int64_t threads = 0;
  std::chrono::nanoseconds queue_time{0};
  std::chrono::nanoseconds compute_time{0};
  int64_t flops = 0;
  int64_t workspace_bytes = 0;
};

struct EngineOptions {
  int threads = 0;                    // 0 = AvailableThreads()
  std::optional<Isa> force_isa = {};  // default: the fastest; must be supported
};

// Computes problems on worker threads of its own. Thread-safe. The destructor
// cancels the problems that are not finished and waits until their workers
// stop.
class AttentionEngine {
 public:
  using Done = std::function<void(absl::Status, const RunStats&)>;

  // Throws std::system_error if the system starts too few threads.
  explicit AttentionEngine(const EngineOptions& options = {});
  ~AttentionEngine();

  // Starts to compute `problem` and returns. Calls `done` exactly once: from a
  // worker, or inside this call. It is called inside this call if the problem
  // is tiny, because the caller's thread then computes it (docs/adr/0008). It
  // is also called inside this call with INVALID_ARGUMENT if the bytes of the
  // estimate do not fit an int64, and with RESOURCE_EXHAUSTED if there is no
  // memory for the workspace. So the caller must hold no lock that `done`
  // takes. `done` must not block. After an error the contents of the outputs
  // are undefined.
  //
  // If `source` is not null, the job first loads the inputs from it. `buffers`,
  // `stop` and `source` must stay valid until `done` is called. The caller's
  // thread takes the workspace, which has the estimate's workspace_bytes, from
  // the pool. The engine itself sets the work of `order`.
  void Submit(const AttentionProblem& problem, const AttentionBuffers& buffers,
              const StopSignal* stop, Done done, InputSource* source = nullptr,
              JobOrder order = {}, JobTicket ticket = {});

  // Computes the gradients of `problem` under the same rules as Submit. Calls
  // `done` with the status of AttentionProblem::CheckGradients unless that is
  // OK. Reserves the workspace_bytes of EstimateBackward.
  void SubmitBackward(const AttentionProblem& problem,
                      const BackwardBuffers& buffers, const StopSignal* stop,
                      Done done, InputSource* source = nullptr,
                      JobOrder order = {}, JobTicket ticket = {});

  // Returns whether the forward or backward pass of `problem` could end before
  // the deadline of `order`. If so, keeps its place in `ticket` until that is
  // passed to Submit or SubmitBackward, or is destroyed. Call it before you
  // take memory for the problem.
  DeadlineForecast Admit(const AttentionProblem& problem, bool backward,
                         const MemoryEstimate& estimate, JobOrder order,
                         JobTicket& ticket);

  // Run and RunBackward submit the problem, wait until it ends, and return what
  // `done` would get. A worker of this engine must not call them.
  absl::StatusOr<RunStats> Run(const AttentionProblem& problem,
                               const AttentionBuffers& buffers,
                               const StopSignal* stop = nullptr);
  absl::StatusOr<RunStats> RunBackward(const AttentionProblem& problem,
                                       const BackwardBuffers& buffers,
                                       const StopSignal* stop = nullptr);

  const MachineInfo& machine() const { return machine_; }
  int threads() const { return scheduler_.threads(); }
  // Returns how many of the threads compute at this moment.
  int busy_threads() const { return scheduler_.busy_threads(); }
  const MemoryEstimator& estimator() const { return estimator_; }
  // The workers of this engine. Work that is not an attention call may run on
  // them, too.
  TileScheduler& scheduler() { return scheduler_; }
  // The pool that workspaces come from. Callers also reserve memory for inputs
  // and outputs from it.
  WorkspacePool& pool() { return pool_; }

 private:
  using MakeJob =
      absl::FunctionRef<std::unique_ptr<TileJob>(Workspace workspace)>;

  // Reserves the workspace that `estimate` counts, and runs the job that
  // `make_job` makes with it. `tasks` is the number of tasks of that job, not
  // counting those that load inputs.
  void Start(const AttentionProblem& problem, int64_t tasks,
             const MemoryEstimate& estimate, RunStats stats,
             const StopSignal* stop, Done done, const JobOrder& order,
             JobTicket ticket, MakeJob make_job);

  MachineInfo machine_;
  WorkspacePool pool_;
  TileScheduler scheduler_;
  MemoryEstimator estimator_;
};

}  // namespace attnd

#endif  // ATTND_CORE_ATTENTION_ENGINE_H_
