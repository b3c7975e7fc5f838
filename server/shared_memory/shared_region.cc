#include "server/shared_memory/shared_region.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "wire/shm_protocol.h"

namespace attnd::server {
namespace {

// Returns an error unless `fd` is a file on tmpfs. On tmpfs, pages are
// allocated when they are first touched. Pages of hugetlbfs can run out, and a
// file on a disk or on FUSE can fail or block. Each of these would end this
// process or block a worker.
absl::Status CheckFileSystem(int fd) {
  constexpr char kExpected[] = "a memfd, which lies on tmpfs";
  struct stat info {};
  struct statfs system {};
  if (fstat(fd, &info) != 0 || fstatfs(fd, &system) != 0) {
    return absl::ErrnoToStatus(errno, "descriptor: cannot be examined");
  }
  if (system.f_type == HUGETLBFS_MAGIC) {
    return FieldError("descriptor", kExpected, "hugetlbfs (MFD_HUGETLB)");
  }
  if (!S_ISREG(info.st_mode) || system.f_type != TMPFS_MAGIC) {
    return FieldError(
        "descriptor", kExpected,
        S_ISREG(info.st_mode)
            ? absl::StrCat("a file system of type 0x", absl::Hex(system.f_type))
            : "a descriptor that is not a regular file");
  }
  return absl::OkStatus();
}

// With these three seals, the size that fstat returns cannot change.
absl::StatusOr<int> CheckedSeals(int fd) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) return absl::ErrnoToStatus(errno, "seals: cannot be read");
  const std::pair<int, const char*> needed[] = {
      {F_SEAL_SHRINK, "F_SEAL_SHRINK"},
      {F_SEAL_GROW, "F_SEAL_GROW"},
      {F_SEAL_SEAL, "F_SEAL_SEAL"}};
  for (const auto& [seal, name] : needed) {
    if ((seals & seal) == 0) {
      return FieldError("seals", "F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL",
                        absl::StrCat("no ", name));
    }
  }
  return seals;
}

absl::StatusOr<int64_t> CheckedSize(int fd) {
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    return absl::ErrnoToStatus(errno, "size: cannot be read");
  }
  if (info.st_size <= 0) {
    return FieldError("size", "at least 1 byte", absl::StrCat(info.st_size));
  }
  return int64_t{info.st_size};
}

absl::StatusOr<std::byte*> Map(int fd, int64_t size_bytes, int protection,
                               int sharing) {
  void* const data = mmap(nullptr, static_cast<size_t>(size_bytes), protection,
                          sharing | MAP_NORESERVE, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, "descriptor: cannot be mapped");
  }
  return static_cast<std::byte*>(data);
}

absl::StatusOr<std::string> RandomHandle() {
  std::string handle(kHandleBytes, '\0');
  // A call for up to 256 bytes never returns fewer.
  if (getrandom(handle.data(), handle.size(), 0) !=
      static_cast<ssize_t>(handle.size())) {
    return absl::ErrnoToStatus(errno, "handle: cannot get random numbers");
  }
  return handle;
}

}  // namespace

// What each uid uses. Every charge shares ownership of the quota, so that a
// region that a job uses can outlive the registry.
struct RegionRegistry::Quota {
  struct Use {
    int64_t bytes = 0;
    int64_t regions = 0;
  };

  explicit Quota(int64_t limit) : limit_bytes(limit) {}

  const int64_t limit_bytes;
  std::mutex mutex;
  std::map<uid_t, Use> by_uid;  // guarded by mutex

  // Charges a region. The charge ends when the last copy of the returned
  // pointer is destroyed.
  static absl::StatusOr<std::shared_ptr<void>> Charge(
      const std::shared_ptr<Quota>& quota, uid_t uid, int64_t bytes) {
    const std::lock_guard lock(quota->mutex);
    Use& use = quota->by_uid[uid];
    if (bytes > quota->limit_bytes - use.bytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "size: expected at most ", quota->limit_bytes - use.bytes,
          " bytes, because uid ", uid, " has used the rest of its ",
          quota->limit_bytes, " (--shm-quota-bytes), got ", bytes));
    }
    if (use.regions == kMaxRegions) {
      return absl::ResourceExhaustedError(
          absl::StrCat("regions: expected at most ", kMaxRegions, " of uid ",
                       uid, ", got one more"));
    }
    use.bytes += bytes;
    ++use.regions;
    return std::shared_ptr<void>(nullptr, [quota, uid, bytes](void*) {
      const std::lock_guard given_back(quota->mutex);
      const auto entry = quota->by_uid.find(uid);
      entry->second.bytes -= bytes;
      if (--entry->second.regions == 0) quota->by_uid.erase(entry);
    });
  }
};

SharedRegion::~SharedRegion() {
  const auto size = static_cast<size_t>(size_bytes_);
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size);
  if (writable_data_ != nullptr) munmap(writable_data_, size);
}

RegionRegistry::RegionRegistry(int64_t quota_bytes)
    : quota_(std::make_shared<Quota>(quota_bytes)) {}

absl::StatusOr<std::shared_ptr<const SharedRegion>> RegionRegistry::Register(
    UniqueFd fd, uid_t uid) {
  ATTND_RETURN_IF_ERROR(CheckFileSystem(fd.get()));
  ATTND_ASSIGN_OR_RETURN(const int seals, CheckedSeals(fd.get()));
  ATTND_ASSIGN_OR_RETURN(const int64_t size_bytes, CheckedSize(fd.get()));
  const std::shared_ptr<SharedRegion> region(new SharedRegion);
  region->size_bytes_ = size_bytes;
  ATTND_ASSIGN_OR_RETURN(region->charge_,
                         Quota::Charge(quota_, uid, size_bytes));
  ATTND_ASSIGN_OR_RETURN(region->handle_, RandomHandle());
  // Before Linux 6.7, a file that is sealed against writes cannot be mapped as
  // shared. Nobody can write to it, so a private mapping has the same contents.
  const int sharing = (seals & F_SEAL_WRITE) != 0 ? MAP_PRIVATE : MAP_SHARED;
  ATTND_ASSIGN_OR_RETURN(region->data_,
                         Map(fd.get(), size_bytes, PROT_READ, sharing));
  const bool may_write = (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0 &&
                         (fcntl(fd.get(), F_GETFL) & O_ACCMODE) == O_RDWR;
  if (may_write) {
    ATTND_ASSIGN_OR_RETURN(
        region->writable_data_,
        Map(fd.get(), size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED));
  }
  const std::lock_guard lock(mutex_);
  regions_.emplace(region->handle(), region);
  return region;
}

void RegionRegistry::Unregister(const std::string& handle) {
  // Declared before the lock, so that the region is unmapped after the lock is
  // released.
  std::shared_ptr<const SharedRegion> region;
  const std::lock_guard lock(mutex_);
  const auto entry = regions_.find(handle);
  if (entry == regions_.end()) return;
  region = std::move(entry->second);
  regions_.erase(entry);
}

std::shared_ptr<const SharedRegion> RegionRegistry::Find(
    absl::string_view handle) const {
  const std::lock_guard lock(mutex_);
  const auto entry = regions_.find(std::string(handle));
  return entry == regions_.end() ? nullptr : entry->second;
}

}  // namespace attnd::server
