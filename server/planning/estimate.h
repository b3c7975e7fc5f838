// MemoryEstimate: the estimator's numbers in the contract's words, with this
// server's limits beside them. Pure; the same code path as admission.
#ifndef ATTND_SERVER_PLANNING_ESTIMATE_H_
#define ATTND_SERVER_PLANNING_ESTIMATE_H_

#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "server/calls/service_context.h"

namespace attnd::server {

absl::StatusOr<v1::MemoryEstimateResponse> EstimateMemory(
    const v1::MemoryEstimateRequest& request, const ServiceContext& context);

}  // namespace attnd::server

#endif  // ATTND_SERVER_PLANNING_ESTIMATE_H_
