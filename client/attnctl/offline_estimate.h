// Computes, without a server, what MemoryEstimate would answer on this machine.
#ifndef ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_
#define ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_

#include "absl/status/statusor.h"
#include "client/types.h"

namespace attnd::attnctl {

// The defaults are those of the contract; for threads, it is as many as this
// machine allows. `fits` and `limiting_factor` stay unset, because they depend
// on the limits of a server. INVALID_ARGUMENT names the flag at fault.
absl::StatusOr<client::MemoryEstimate> EstimateOffline(
    const client::MemoryEstimateOptions& options);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_
