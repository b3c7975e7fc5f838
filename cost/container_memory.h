// Finds the memory that a container needs, so that the server in it can hold
// given calls.
#ifndef ATTND_COST_CONTAINER_MEMORY_H_
#define ATTND_COST_CONTAINER_MEMORY_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "base/types.h"
#include "cost/call_cost.h"
#include "cost/memory_shares.h"

namespace attnd {

struct ContainerMemory {
  int64_t limit_bytes = 0;        // of the container: a multiple of 1 MiB
  int64_t max_message_bytes = 0;  // --max-message-bytes
  MemoryNeed need = {};           // what the calls need
  MemoryShares shares = {};       // how the server divides the limit
};

// Returns the smallest memory with which a server holds `concurrency` calls at
// once, even if all their messages arrive at the same time. `call` is what each
// of them takes, and `transport` says how its tensors travel. OUT_OF_RANGE
// if no server takes messages of that size, or if no limit is large enough.
absl::StatusOr<ContainerMemory> SolveContainerMemory(const CallCost& call,
                                                     Transport transport,
                                                     int64_t concurrency);

}  // namespace attnd

#endif  // ATTND_COST_CONTAINER_MEMORY_H_
