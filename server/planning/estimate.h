// Answers the rpc MemoryEstimate: converts its request to a CostQuery, and the
// cost or the largest problem that fits to the response.
#ifndef ATTND_SERVER_PLANNING_ESTIMATE_H_
#define ATTND_SERVER_PLANNING_ESTIMATE_H_

#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_engine.h"
#include "cost/container_memory.h"
#include "cost/cost_limits.h"

namespace attnd::server {

// Returns how much memory the calls take that `request` describes, and whether
// they fit within `limits`, or else the largest calls that fit. The estimate is
// for the machine of `engine`, and for as many threads as `engine` has unless
// the request has another number. An error names the field of the request that
// is wrong.
absl::StatusOr<v1::MemoryEstimateResponse> EstimateMemory(
    const v1::MemoryEstimateRequest& request, const AttentionEngine& engine,
    const CostLimits& limits);

// Returns the memory that a container needs, so that a server in it holds the
// calls that `request` describes. INVALID_ARGUMENT if the goal of the request
// is another one than `estimate`. OUT_OF_RANGE if no container is large enough,
// or if the problem is too large to be computed.
absl::StatusOr<ContainerMemory> EstimateContainer(
    const v1::MemoryEstimateRequest& request, const AttentionEngine& engine,
    const CostLimits& limits);

}  // namespace attnd::server

#endif  // ATTND_SERVER_PLANNING_ESTIMATE_H_
