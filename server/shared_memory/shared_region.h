// Maps memory that clients share with the server, and finds it by its handle.
// Checks that a hostile client cannot crash the server with it; docs/adr/0007
// describes the threats.
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

// Memory of a client (a memfd whose size is sealed), mapped into this process.
// The destructor unmaps it. The client can change its contents at any time.
// Thread-safe.
class SharedRegion {
 public:
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  const std::string& handle() const { return handle_; }
  int64_t size_bytes() const { return size_bytes_; }

  // Returns the read-only mapping of the memory, for inputs. A kernel that
  // writes here by mistake crashes instead of changing an input.
  const std::byte* data() const { return data_; }
  // Returns a writable mapping of the same bytes, for outputs. Null if the
  // client's file descriptor or its seals forbid writing.
  std::byte* writable_data() const { return writable_data_; }

 private:
  friend class RegionRegistry;
  SharedRegion() = default;

  // The region's bytes of the quota of its uid. They are given back after the
  // region is unmapped.
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
  // The most regions that one uid can have. Each takes two memory mappings of
  // the server, and this many regions take far fewer mappings than a process
  // may have.
  static constexpr int64_t kMaxRegions = 256;

  // `quota_bytes` limits the sizes of all regions of one uid together. A region
  // that is no longer registered counts until no call uses it any more.
  explicit RegionRegistry(int64_t quota_bytes);

  // Checks `fd`, maps it, and registers the region under a random handle.
  // Returns INVALID_ARGUMENT if `fd` is not a sealed memfd on tmpfs, and
  // RESOURCE_EXHAUSTED if `uid` exceeds its quota or has too many regions.
  absl::StatusOr<std::shared_ptr<const SharedRegion>> Register(UniqueFd fd,
                                                               uid_t uid);
  // Makes Find no longer return the region. Does nothing if there is no such
  // region.
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
