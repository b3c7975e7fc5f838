// Finds the tensors of a call that are in memory that the client shares. Checks
// every handle, offset and size before anything is read or written.
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

// A part of a shared region. Keeps the region mapped.
struct SharedPart {
  // Null if the tensor is not in shared memory.
  std::shared_ptr<const SharedRegion> region;
  int64_t offset_bytes = 0;
  int64_t size_bytes = 0;

  const std::byte* data() const { return region->data() + offset_bytes; }
  std::byte* writable_data() const {
    return region->writable_data() + offset_bytes;
  }
};

// The parts of shared regions that a call reads and writes.
struct SharedTensors {
  std::array<SharedPart, kTensorRoles> inputs;
  SharedPart output;
  SharedPart lse;
};

// Returns the parts of shared regions to which `tensors` refers. `decoded` must
// be what DecodeRequest returned for `tensors`. `registry` is null if the
// server was started without shared memory. Errors name the field: -
// FAILED_PRECONDITION if the request needs shared memory and it is off; -
// NOT_FOUND if no registered region has the handle; - INVALID_ARGUMENT if a
// part exceeds its region, if an output is in a region
//   that the server cannot write, or if it overlaps another output or an input.
absl::StatusOr<SharedTensors> FindSharedTensors(const AttentionTensors& tensors,
                                                const DecodedRequest& decoded,
                                                const RegionRegistry* registry);

}  // namespace attnd::server

#endif  // ATTND_SERVER_SHARED_MEMORY_SHARED_TENSORS_H_
