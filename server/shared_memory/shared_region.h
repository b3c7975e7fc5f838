// Maps memory that clients share with the server, and finds it by handle. The
// checks in this file make that safe. docs/adr/0007 describes the threats.
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

// The sealed memfd of a client, mapped into this process. The destructor unmaps
// it. The client can change its contents at any time. Thread-safe.
class SharedRegion {
 public:
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  const std::string& handle() const { return handle_; }
  int64_t size_bytes() const { return size_bytes_; }

  // Returns a mapping that is read-only, so that a kernel that writes here by
  // mistake crashes instead of changing an input.
  const std::byte* data() const { return data_; }
  // Returns a mapping of the same bytes that can be written. Null if the seals
  // of the client or its descriptor forbid writing.
  std::byte* writable_data() const { return writable_data_; }

 private:
  friend class RegionRegistry;
  SharedRegion() = default;

  // What the region takes of the quota. Returned to it after the region is
  // unmapped.
  std::shared_ptr<void> charge_;
  std::string handle_;
  int64_t size_bytes_ = 0;
  const std::byte* data_ = nullptr;
  std::byte* writable_data_ = nullptr;
};

// Registers regions and finds them by handle. Thread-safe. Regions may outlive
// it.
class RegionRegistry {
 public:
  // The most regions that one uid can have. A region takes two mappings, and
  // this many regions take far fewer mappings than a process can have.
  static constexpr int64_t kMaxRegions = 256;

  // `quota_bytes` limits the sizes of all regions of one uid together. Regions
  // that are no longer registered count for as long as a call uses them.
  explicit RegionRegistry(int64_t quota_bytes);

  // Checks `fd`, maps it, and registers the region under a random handle.
  // Returns INVALID_ARGUMENT if `fd` is not a sealed memfd on tmpfs, and
  // RESOURCE_EXHAUSTED if `uid` exceeds its quota or has too many regions.
  absl::StatusOr<std::shared_ptr<const SharedRegion>> Register(UniqueFd fd,
                                                               uid_t uid);
  // Makes Find no longer return the region. Does nothing if there is none.
  void Unregister(const std::string& handle);

  // Returns the registered region with this handle, or null if there is none.
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
