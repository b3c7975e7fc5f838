// Where a call's tensors lie in shared regions: every handle, offset and size
// that a request names is checked here, before anything is read or written.
// Knows no socket.
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

// A part of a region, which it keeps mapped.
struct SharedPart {
  std::shared_ptr<const SharedRegion> region;  // null: lies elsewhere
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

// `decoded` is what DecodeRequest made of `tensors`. `registry` is null where
// shared memory is off: FAILED_PRECONDITION for who wants it. NOT_FOUND for a
// handle that is not registered (any more), INVALID_ARGUMENT for a part that
// does not lie in its region, may not be written to, or is written to and read
// at once; all of them name the field.
absl::StatusOr<SharedTensors> FindSharedTensors(const AttentionTensors& tensors,
                                                const DecodedRequest& decoded,
                                                const RegionRegistry* registry);

}  // namespace attnd::server

#endif  // ATTND_SERVER_SHARED_MEMORY_SHARED_TENSORS_H_
