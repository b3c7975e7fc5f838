// Memory that clients lend to the server, by handle. The checks here are what
// makes that safe: docs/adr/0007 has the threats. Knows no socket, no gRPC and
// no attention.
#ifndef ATTND_SERVER_SHARED_MEMORY_SHARED_REGION_H_
#define ATTND_SERVER_SHARED_MEMORY_SHARED_REGION_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/unique_fd.h"

namespace attnd::server {

// A sealed memfd of a client's in this process, until the last pointer to it
// goes. Its contents may change at any time.
class SharedRegion {
 public:
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  const std::string& handle() const { return handle_; }
  int64_t size_bytes() const { return size_bytes_; }

  // Mapped without the right to write: a kernel that strays faults here.
  const std::byte* data() const { return data_; }
  // The same bytes to be written; null where the client's seals or its
  // descriptor forbid that.
  std::byte* writable_data() const { return writable_data_; }

 private:
  friend class RegionRegistry;
  SharedRegion() = default;

  std::shared_ptr<void> charge_;  // of the quota; goes after the mappings
  std::string handle_;
  int64_t size_bytes_ = 0;
  const std::byte* data_ = nullptr;
  std::byte* writable_data_ = nullptr;
};

// Thread-safe. Regions may outlive it.
class RegionRegistry {
 public:
  // Of one uid. Two mappings each: far below what a process may have.
  static constexpr int64_t kMaxRegions = 256;

  // `quota_bytes` is what the regions of one uid may come to, those included
  // that are no longer registered and still in use.
  explicit RegionRegistry(int64_t quota_bytes);

  // Checks and maps what `fd` is. INVALID_ARGUMENT for what is no sealed memfd
  // on tmpfs; RESOURCE_EXHAUSTED above the quota. The region answers its handle
  // until Unregister.
  absl::StatusOr<std::shared_ptr<const SharedRegion>> Register(UniqueFd fd,
                                                               uid_t uid);
  void Unregister(const std::string& handle);

  // Null where there is none.
  std::shared_ptr<const SharedRegion> Find(absl::string_view handle) const;

 private:
  struct Quota;

  const std::shared_ptr<Quota> quota_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::map<std::string, std::shared_ptr<const SharedRegion>, std::less<>>
      regions_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_SHARED_MEMORY_SHARED_REGION_H_
