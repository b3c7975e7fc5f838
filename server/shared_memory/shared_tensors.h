// Finds a call's tensors in shared regions. Checks every handle, offset and
// size of a request before anything is read or written.
#ifndef ATTND_SERVER_SHARED_MEMORY_SHARED_TENSORS_H_
#define ATTND_SERVER_SHARED_MEMORY_SHARED_TENSORS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "server/codec/request_codec.h"
#include "server/shared_memory/shared_region.h"

namespace attnd::server {

// A part of a region. Keeps the region mapped.
struct SharedPart {
  std::shared_ptr<const SharedRegion> region;  // null: not in shared memory
  int64_t offset_bytes = 0;
  int64_t size_bytes = 0;

  const std::byte* data() const { return region->data() + offset_bytes; }
  std::byte* writable_data() const {
    return region->writable_data() + offset_bytes;
  }
};

struct SharedTensors {
  std::array<SharedPart, kTensorRoles> inputs;
  SharedPart output;
  SharedPart lse;
};

// Returns the parts of the regions that `tensors` refers to. `decoded` is what
// DecodeRequest returned for `tensors`. `registry` is null if shared memory is
// off. Errors name the field:
// - FAILED_PRECONDITION if the request needs shared memory and it is off;
// - NOT_FOUND if no region has the handle, or no longer;
// - INVALID_ARGUMENT if a part exceeds its region, may not be written, or would
//   be written and read at the same time.
absl::StatusOr<SharedTensors> FindSharedTensors(const AttentionTensors& tensors,
                                                const DecodedRequest& decoded,
                                                const RegionRegistry* registry);

}  // namespace attnd::server

#endif  // ATTND_SERVER_SHARED_MEMORY_SHARED_TENSORS_H_
