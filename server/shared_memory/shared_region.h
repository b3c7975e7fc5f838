// Memory that clients lend to the server, found by handle. The checks here make
// that safe: docs/adr/0007 describes the threats.
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

// A client's sealed memfd, mapped in this process until the last pointer to it
// is destroyed. The client may change its contents at any time.
class SharedRegion {
 public:
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  const std::string& handle() const { return handle_; }
  int64_t size_bytes() const { return size_bytes_; }

  // This mapping cannot be written, so a kernel that strays here faults.
  const std::byte* data() const { return data_; }
  // The same bytes, to be written. Null if the client's seals or its descriptor
  // forbid that.
  std::byte* writable_data() const { return writable_data_; }

 private:
  friend class RegionRegistry;
  SharedRegion() = default;

  std::shared_ptr<void> charge_;  // to the quota; destroyed after the mappings
  std::string handle_;
  int64_t size_bytes_ = 0;
  const std::byte* data_ = nullptr;
  std::byte* writable_data_ = nullptr;
};

// The registered regions. Thread-safe. Regions may outlive it.
class RegionRegistry {
 public:
  // The most regions of one uid. Each takes two mappings, which is far below
  // the limit of a process.
  static constexpr int64_t kMaxRegions = 256;

  // `quota_bytes` limits the sum of the regions of one uid, including those
  // that are no longer registered but still in use.
  explicit RegionRegistry(int64_t quota_bytes);

  // Checks `fd` and maps it. Returns INVALID_ARGUMENT if it is no sealed memfd
  // on tmpfs, and RESOURCE_EXHAUSTED if the region exceeds the quota. Find
  // returns the region until Unregister.
  absl::StatusOr<std::shared_ptr<const SharedRegion>> Register(UniqueFd fd,
                                                               uid_t uid);
  void Unregister(const std::string& handle);

  // Returns null if no region has this handle.
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
