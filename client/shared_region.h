// Memory that a program shares with a server on the same host. Tensors in it
// are not sent: the server reads and writes them in place.
#ifndef ATTND_CLIENT_SHARED_REGION_H_
#define ATTND_CLIENT_SHARED_REGION_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/types.h"

namespace attnd::client {

// A region of memory that a server has mapped, too. RegisterRegion makes one.
// Movable. Not thread-safe. The destructor unmaps the region and ends its
// registration, so destroy it after all calls that use it and after all
// Elements in it. If this process ends, the server unmaps the region by itself.
//
//   using attnd::client::DataType;
//   auto region =
//       attnd::client::RegisterRegion("/run/attnd/shm.sock", 1 << 20);
//   auto q = region->Allocate(DataType::kF32, 8 * 64);
//   auto output = region->Allocate(DataType::kF32, 8 * 64);
//   // ... allocate k and v in the same way, and fill the floats() of all ...
//   client.Attention({.query = {*q, {8, 64}}, ...}, {.output = *output});
//
// If a call ends early because of its deadline or because it is cancelled, the
// server may write to the outputs for a moment after the call has ended.
class SharedRegion {
 public:
  SharedRegion(SharedRegion&& other) noexcept;
  SharedRegion& operator=(SharedRegion&& other) noexcept;
  ~SharedRegion();

  // Returns the next `count` free elements, of type `type`. They are aligned to
  // 64 bytes, and they are 0 at first. You cannot return elements to the
  // region. Returns RESOURCE_EXHAUSTED if too few bytes of the region are free.
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

// Makes a region of `size_bytes`, rounded up to a multiple of 64, and registers
// it with the server. `shm_socket` is the path that the server has as
// --shm-socket. Errors:
// - INVALID_ARGUMENT if the size is not positive or the path is too long;
// - UNAVAILABLE if no server listens at the path, or if the server does not
//   accept the connection or does not reply within `patience`;
// - PERMISSION_DENIED if the uid of this process may not connect;
// - RESOURCE_EXHAUSTED if the region exceeds the quota of the uid.
absl::StatusOr<SharedRegion> RegisterRegion(
    const std::string& shm_socket, int64_t size_bytes,
    absl::Duration patience = absl::Seconds(10));

}  // namespace attnd::client

#endif  // ATTND_CLIENT_SHARED_REGION_H_
