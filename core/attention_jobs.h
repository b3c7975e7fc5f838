// Makes the jobs that compute attention on the workers of a TileScheduler.
// Their code is in core/kernels, whose headers are private.
#ifndef ATTND_CORE_ATTENTION_JOBS_H_
#define ATTND_CORE_ATTENTION_JOBS_H_

#include <cstdint>
#include <memory>

#include "core/attention_problem.h"
#include "core/backward_plan.h"
#include "core/input_source.h"
#include "core/kernel_plan.h"
#include "core/tile_scheduler.h"
#include "core/workspace.h"

namespace attnd {

// Returns a job that computes `problem` by `plan`. At most `threads` of its
// tasks may run at the same time. `workspace` must have at least
// plan.WorkspaceBytes(threads) bytes. `buffers` must outlive the job. The job
// first loads the inputs from `source` if that is not null; then `source` must
// outlive the job, too.
std::unique_ptr<TileJob> MakeForwardJob(const AttentionProblem& problem,
                                        KernelPlan plan,
                                        const AttentionBuffers& buffers,
                                        InputSource* source, int64_t threads,
                                        Workspace workspace);

// Returns a job that computes the gradients of `problem` by `plan`, under the
// same rules.
std::unique_ptr<TileJob> MakeBackwardJob(const AttentionProblem& problem,
                                         BackwardPlan plan,
                                         const BackwardBuffers& buffers,
                                         InputSource* source, int64_t threads,
                                         Workspace workspace);

}  // namespace attnd

#endif  // ATTND_CORE_ATTENTION_JOBS_H_
