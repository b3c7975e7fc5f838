// Computes the memory that a call takes, as the rpc MemoryEstimate of a server
// on this machine would, but without a server.
#ifndef ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_
#define ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_

#include "absl/status/statusor.h"
#include "client/types.h"

namespace attnd::attnctl {

// Returns the estimate for `options`. Unset options have the defaults that
// attnd/v1/attention.proto documents, and `threads` defaults to the number of
// threads that this machine allows. `fits` and `limiting_factor` stay unset,
// because they depend on the limits of a server. Returns INVALID_ARGUMENT with
// the name of the flag if an option is wrong.
absl::StatusOr<client::MemoryEstimate> EstimateOffline(
    const client::MemoryEstimateOptions& options);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_OFFLINE_ESTIMATE_H_
