// Measures how fast a server answers calls of one kind, by making such calls.
#ifndef ATTND_CLIENT_ATTNCTL_CALL_RATE_H_
#define ATTND_CLIENT_ATTNCTL_CALL_RATE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/attention_client.h"
#include "client/types.h"

namespace attnd::attnctl {

struct CallRate {
  double alone_s = 0;           // the median time of a call without others
  double calls_per_second = 0;  // of all clients together
  int64_t calls = 0;            // how many calls that rate is measured with
};

// Makes calls of `problem` with random tensors: first by one client, one after
// the other, and then by all `clients` at the same time. This takes about four
// seconds, or the time of a few calls by each client if that is longer. Tensors
// are in a region registered at `shm_socket` if the transport is shared memory.
// Calls `on_progress` with the name of the phase and the share of it that is
// done, from one thread. Returns the first error of a call, or
// RESOURCE_EXHAUSTED if there cannot be a thread for each client.
absl::StatusOr<CallRate> MeasureCallRate(
    const client::MemoryEstimateOptions& problem,
    const std::vector<client::AttentionClient>& clients,
    const std::string& shm_socket,
    const std::function<void(absl::string_view phase, double fraction)>&
        on_progress);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_CALL_RATE_H_
