// Computes the memory that a call takes, without a server. The result is what
// MemoryEstimate of a server on this machine would return.
#ifndef ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_
#define ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/types.h"
#include "cost/cost_limits.h"
#include "cost/cost_query.h"

namespace attnd::attnctl {

// Returns the estimate for `options`. Options that are not set have the
// defaults that attnd/v1/attention.proto documents. `threads` defaults to the
// number of threads that this process may use. `limits` are those of the server
// that the estimate is for. `options.budget_bytes` replaces their budget unless
// it is 0. Without any budget, `fits` is false and `limiting_factor` is empty,
// or kInt64RangeLimit if no server can compute the problem, and a goal is an
// error. Returns INVALID_ARGUMENT with the name of the flag if an option is
// wrong.
absl::StatusOr<client::MemoryEstimate> EstimateOffline(
    const client::MemoryEstimateOptions& options, CostLimits limits = {});

// Returns the query for `options`, with every default set, or the same error.
absl::StatusOr<CostQuery> QueryOf(const client::MemoryEstimateOptions& options);

// Returns OK if the problem of `options` is not too large to be computed, and
// its memory can be counted. Otherwise returns INVALID_ARGUMENT with the name
// of the flag whose number is too large, or the same error.
absl::Status CheckComputable(const client::MemoryEstimateOptions& options);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_
