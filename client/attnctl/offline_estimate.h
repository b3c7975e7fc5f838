// What MemoryEstimate would answer on this machine, computed without a server.
#ifndef ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_
#define ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_

#include "absl/status/statusor.h"
#include "client/types.h"

namespace attnd::attnctl {

// Defaults are those of the contract, with this machine's instruction set and
// processors for the server's. `fits` and `limiting_factor` stay unset: they
// are about a server's budget. INVALID_ARGUMENT names the flag at fault.
absl::StatusOr<client::MemoryEstimate> EstimateOffline(
    const client::MemoryEstimateOptions& options);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_
