// Finds the limits that a server and its container need for given calls, and
// writes them in the forms in which containers are deployed.
#ifndef ATTND_CLIENT_ATTNCTL_CONTAINER_LIMITS_H_
#define ATTND_CLIENT_ATTNCTL_CONTAINER_LIMITS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/attnctl/session.h"
#include "client/types.h"

namespace attnd::attnctl {

// The limits for a server that holds `max_in_flight` equal calls at once.
struct ContainerLimits {
  int64_t cpus = 0;                 // one for each thread
  int64_t memory_bytes = 0;         // a multiple of 1 MiB
  int64_t max_in_flight = 0;        // --max-in-flight
  int64_t max_message_bytes = 0;    // --max-message-bytes
  int64_t shm_quota_bytes = 0;      // --shm-quota-bytes; 0 without regions
  int64_t memory_budget_bytes = 0;  // what the server will compute
  // What a user should know. Each is one or more full sentences.
  std::vector<std::string> notes = {};
};

// Returns the limits for `concurrency` calls at once. `estimate` is the
// estimate of one or more such calls, `transport` says how their tensors
// travel, and `threads` is the number of threads that compute each of them. The
// memory is the smallest with which the server holds all of the calls, even if
// all their messages arrive at the same time. OUT_OF_RANGE if no limit is
// large enough.
//
// max_in_flight equals the number of calls for which there is memory. With more
// slots, the server would refuse the next call, too, but only after it has
// decoded its message.
absl::StatusOr<ContainerLimits> SolveLimits(
    const client::MemoryEstimate& estimate, client::Transport transport,
    int64_t threads, int64_t concurrency);

enum class LimitsFormat { kKubernetes, kCompose, kFlags };

// Returns the limits as lines that can be pasted: into a container of
// Kubernetes, a service of Compose, or a command line. The notes are comments.
std::vector<std::string> LimitsText(const ContainerLimits& limits,
                                    LimitsFormat format);

// Returns the limits for --json.
Json LimitsJson(const ContainerLimits& limits);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_CONTAINER_LIMITS_H_
