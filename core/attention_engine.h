// Computes checked attention problems: submit one, and get a completion. Joins
// plan, workspace, jobs and scheduler.
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

// Which kernel ran, and what it took.
struct RunStats {
  Isa isa = Isa::kScalar;
  std::string_view kernel;
  int64_t tile_q = 0;
  int64_t tile_kv = 0;
  int64_t threads = 0;
  std::chrono::nanoseconds queue_time{0};
  std::chrono::nanoseconds compute_time{0};
  int64_t flops = 0;
  int64_t workspace_bytes = 0;
};

struct EngineOptions {
  int threads = 0;                    // 0 = what the machine allows
  std::optional<Isa> force_isa = {};  // default: the fastest; must be supported
};

// Thread-safe. The destructor cancels the jobs that are left and waits for
// them.
class AttentionEngine {
 public:
  using Done = std::function<void(absl::Status, const RunStats&)>;

  // Throws std::system_error if the system starts too few threads.
  explicit AttentionEngine(const EngineOptions& options = {});
  ~AttentionEngine();

  // Starts `problem` and returns. Takes the workspace, which has the estimate's
  // workspace_bytes, from the pool in the caller's thread. Calls `done` exactly
  // once: from a worker, or inside this call for a tiny problem, which the
  // caller's thread computes (docs/adr/0008). This call also passes
  // INVALID_ARGUMENT to `done` if the estimate has no number, and
  // RESOURCE_EXHAUSTED if there is no workspace. So the caller must hold no
  // lock that `done` takes. `done` must not block. After an error the contents
  // of the outputs are undefined. If `source` is not null, the inputs are
  // loaded from it first. `buffers`, `stop` and `source` must stay valid until
  // `done`.
  void Submit(const AttentionProblem& problem, const AttentionBuffers& buffers,
              const StopSignal* stop, Done done, InputSource* source = nullptr);

  // Does the same for the gradients. Ends with the status of
  // AttentionProblem::CheckGradients unless that is OK. Reserves the
  // workspace_bytes of EstimateBackward.
  void SubmitBackward(const AttentionProblem& problem,
                      const BackwardBuffers& buffers, const StopSignal* stop,
                      Done done, InputSource* source = nullptr);

  // Submit and wait. Must not be called by a worker.
  absl::StatusOr<RunStats> Run(const AttentionProblem& problem,
                               const AttentionBuffers& buffers,
                               const StopSignal* stop = nullptr);
  absl::StatusOr<RunStats> RunBackward(const AttentionProblem& problem,
                                       const BackwardBuffers& buffers,
                                       const StopSignal* stop = nullptr);

  const MachineInfo& machine() const { return machine_; }
  int threads() const { return scheduler_.threads(); }
  const MemoryEstimator& estimator() const { return estimator_; }
  // Runs work that is no attention call on the same workers.
  TileScheduler& scheduler() { return scheduler_; }
  // The pool that workspaces come from. Callers also take inputs and outputs
  // from it.
  WorkspacePool& pool() { return pool_; }

 private:
  using MakeJob =
      absl::FunctionRef<std::unique_ptr<TileJob>(Workspace workspace)>;

  // Reserves the workspace of `estimate` and runs the job that `make_job`
  // makes: `tasks` tasks, without those that load.
  void Start(const AttentionProblem& problem, int64_t tasks,
             const absl::StatusOr<MemoryEstimate>& estimate, RunStats stats,
             const StopSignal* stop, Done done, MakeJob make_job);

  MachineInfo machine_;
  WorkspacePool pool_;
  TileScheduler scheduler_;
  MemoryEstimator estimator_;
};

}  // namespace attnd

#endif  // ATTND_CORE_ATTENTION_ENGINE_H_
