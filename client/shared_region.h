// Memory that this process shares with a server on the same host, so that no
// tensor travels. Includes neither gRPC nor protobuf.
#ifndef ATTND_CLIENT_SHARED_REGION_H_
#define ATTND_CLIENT_SHARED_REGION_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/types.h"

namespace attnd::client {

// A region that a server has mapped too. Movable; not thread-safe. The
// destructor gives it up: calls that use it should be over, and Elements in it
// are gone then. The server lets go of it by itself when this process ends.
//
//   using attnd::client::DataType;
//   auto region =
//       attnd::client::RegisterRegion("/run/attnd/shm.sock", 1 << 20);
//   auto q = region->Allocate(DataType::kF32, 8 * 64);
//   auto output = region->Allocate(DataType::kF32, 8 * 64);
//   // ... allocate k and v likewise, fill q->floats() and theirs ...
//   client.Attention({.query = {*q, {8, 64}}, ...}, {.output = *output});
//
// After a call that failed here (a deadline, a cancel), the server may write to
// the outputs for a moment more.
class SharedRegion {
 public:
  SharedRegion(SharedRegion&& other) noexcept;
  SharedRegion& operator=(SharedRegion&& other) noexcept;
  ~SharedRegion();

  // The next `count` elements that are free, aligned to 64 bytes, all zero at
  // first. RESOURCE_EXHAUSTED where the region has no such room.
  absl::StatusOr<Elements> Allocate(DataType type, int64_t count);

  int64_t size_bytes() const;

 private:
  class Impl;
  explicit SharedRegion(std::unique_ptr<Impl> impl);
  friend absl::StatusOr<SharedRegion> RegisterRegion(
      const std::string& shm_socket, int64_t size_bytes,
      absl::Duration patience);

  std::unique_ptr<Impl> impl_;
};

// Makes a region of `size_bytes` and registers it on the socket of the server's
// --shm-socket. UNAVAILABLE where nobody listens there, or whoever does accepts
// or answers nothing within `patience`; otherwise what the server refused it
// for: PERMISSION_DENIED for this process's uid, RESOURCE_EXHAUSTED above its
// quota.
absl::StatusOr<SharedRegion> RegisterRegion(
    const std::string& shm_socket, int64_t size_bytes,
    absl::Duration patience = absl::Seconds(10));

}  // namespace attnd::client

#endif  // ATTND_CLIENT_SHARED_REGION_H_
