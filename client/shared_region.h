// Memory that this process shares with a server on the same host, so that
// tensors need not be sent.
#ifndef ATTND_CLIENT_SHARED_REGION_H_
#define ATTND_CLIENT_SHARED_REGION_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/types.h"

namespace attnd::client {

// A region of memory that a server has mapped too. Movable; not thread-safe.
// The destructor unmaps the region and ends its registration, so destroy it
// after all calls that use it and after all Elements in it. If this process
// ends, the server unmaps the region by itself.
//
//   using attnd::client::DataType;
//   auto region =
//       attnd::client::RegisterRegion("/run/attnd/shm.sock", 1 << 20);
//   auto q = region->Allocate(DataType::kF32, 8 * 64);
//   auto output = region->Allocate(DataType::kF32, 8 * 64);
//   // ... allocate k and v likewise, fill q->floats() and theirs ...
//   client.Attention({.query = {*q, {8, 64}}, ...}, {.output = *output});
//
// After a call that ended early, by its deadline or because it was cancelled,
// the server may still write to the outputs for a moment.
class SharedRegion {
 public:
  SharedRegion(SharedRegion&& other) noexcept;
  SharedRegion& operator=(SharedRegion&& other) noexcept;
  ~SharedRegion();

  // Returns the next `count` free elements. They are aligned to 64 bytes and
  // are zero at first. Returns RESOURCE_EXHAUSTED if the region has too little
  // left.
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
// --shm-socket. Returns UNAVAILABLE if nobody listens there, or if the server
// neither accepts nor answers within `patience`. Otherwise returns the server's
// error: PERMISSION_DENIED if this process's uid may not connect, or
// RESOURCE_EXHAUSTED if the region exceeds the quota of the uid.
absl::StatusOr<SharedRegion> RegisterRegion(
    const std::string& shm_socket, int64_t size_bytes,
    absl::Duration patience = absl::Seconds(10));

}  // namespace attnd::client

#endif  // ATTND_CLIENT_SHARED_REGION_H_
