// Answers MemoryEstimate: turns the request into a CostQuery, and its cost into
// the response.
#ifndef ATTND_SERVER_PLANNING_ESTIMATE_H_
#define ATTND_SERVER_PLANNING_ESTIMATE_H_

#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_engine.h"
#include "cost/cost_limits.h"

namespace attnd::server {

// The estimate is for the machine of `engine`, and for its threads unless the
// request has a number of its own. A refusal names the field at fault.
absl::StatusOr<v1::MemoryEstimateResponse> EstimateMemory(
    const v1::MemoryEstimateRequest& request, const AttentionEngine& engine,
    const CostLimits& limits);

}  // namespace attnd::server

#endif  // ATTND_SERVER_PLANNING_ESTIMATE_H_
