#include "core/workspace.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/checked_math.h"

namespace attnd {
namespace {

// The size of a huge page on x86-64, and on aarch64 with pages of 4 KiB.
constexpr int64_t kHugeBytes = int64_t{2} << 20;

// No block is larger than this. Up to this size, rounding up cannot overflow.
constexpr int64_t kMaxBlockBytes = int64_t{1} << 62;

// GCC defines a macro for address sanitizer; clang has a feature.
#if defined(__SANITIZE_ADDRESS__)
#define ATTND_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ATTND_ADDRESS_SANITIZER
#endif
#endif

// Address sanitizer detects accesses beyond the end only in blocks of malloc.
#ifdef ATTND_ADDRESS_SANITIZER
constexpr bool kPools = false;
#else
constexpr bool kPools = true;
#endif

// Refers to the pointer that malloc returned for `block`. posix_memalign would
// cost more: it takes no block from the thread's cache, and cuts larger ones to
// pieces.
void*& MallocOf(std::byte* block) {
  return *reinterpret_cast<void**>(block - sizeof(void*));
}

std::byte* AllocateSmall(int64_t size_bytes) {
  constexpr auto kAlignment = static_cast<size_t>(Workspace::kAlignment);
  if (!kPools) {
    // The block has not one byte more, so that the sanitizer detects accesses
    // beyond its end.
    void* block = nullptr;
    return posix_memalign(&block, kAlignment,
                          static_cast<size_t>(size_bytes)) == 0
               ? static_cast<std::byte*>(block)
               : nullptr;
  }
  const auto size =
      static_cast<size_t>(RoundUp(size_bytes, Workspace::kAlignment));
  void* const begin = std::malloc(size + kAlignment);
  if (begin == nullptr) return nullptr;
  // malloc aligns to 16 bytes, so the pointer fits before the block.
  auto* const block = static_cast<std::byte*>(begin) + kAlignment -
                      reinterpret_cast<uintptr_t>(begin) % kAlignment;
  MallocOf(block) = begin;
  return block;
}

void FreeSmall(std::byte* block) {
  std::free(kPools ? MallocOf(block) : block);
}

absl::Status NoMemory(int64_t size_bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("workspace: no memory for ", size_bytes, " bytes"));
}

// Returns how many bytes are mapped for a block: its size rounded up to an
// eighth of a power of two. So blocks of about the same size can stand for each
// other, and at most an eighth is wasted.
int64_t MappedBytes(int64_t size_bytes) {
  const auto floor =
      static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(size_bytes)));
  const int64_t mapped = RoundUp(size_bytes, floor / 8);
  return mapped < kHugeBytes ? mapped : RoundUp(mapped, kHugeBytes);
}

int64_t WholePages(int64_t size_bytes) {
  static const auto page_bytes = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return RoundUp(size_bytes, page_bytes);
}

// Maps a block. Returns null if the system has no memory for it. Pages that are
// never touched take none. If the block has kHugeBytes or more, all of it is in
// small pages until FitBlock changes that.
std::byte* Map(int64_t mapped_bytes) {
  const bool huge = mapped_bytes >= kHugeBytes;
  const auto size = static_cast<size_t>(mapped_bytes);
  const size_t slack = huge ? kHugeBytes : 0;
  void* const begin = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED) return nullptr;
  auto* block = static_cast<std::byte*>(begin);
  if (!huge) return block;
  // The system uses huge pages only at aligned addresses, so the unaligned ends
  // are unmapped.
  const size_t before =
      static_cast<size_t>(-reinterpret_cast<uintptr_t>(begin)) % kHugeBytes;
  if (before > 0) munmap(block, before);
  block += before;
  if (before < slack) munmap(block + size, slack - before);
  // Some systems use huge pages wherever they can. There, the first write to
  // the end of a job's memory would take a whole huge page.
  madvise(block, size, MADV_NOHUGEPAGE);
  return block;
}

// Makes a block hold no more memory than its first `size_bytes`, which the next
// job uses. An earlier job has used the first `used_bytes`. Only for blocks of
// at least kHugeBytes: in smaller ones, too little memory is at stake for a
// system call in each job.
//
// With huge pages there is one fault instead of 512, and one TLB entry. If the
// system has no huge page, the block consists of small pages. What does not
// fill a huge page is in small pages.
void FitBlock(std::byte* block, int64_t used_bytes, int64_t size_bytes) {
  const auto advise = [block](int64_t begin, int64_t end, int advice) {
    madvise(block + begin, static_cast<size_t>(end - begin), advice);
  };
  const int64_t used_end = WholePages(used_bytes);
  const int64_t end = WholePages(size_bytes);
  if (end < used_end) advise(end, used_end, MADV_DONTNEED);
  const int64_t used_huge = used_bytes / kHugeBytes * kHugeBytes;
  const int64_t huge = size_bytes / kHugeBytes * kHugeBytes;
  if (huge < used_huge) advise(huge, used_huge, MADV_NOHUGEPAGE);
  if (huge > used_huge) advise(used_huge, huge, MADV_HUGEPAGE);
}

void Unmap(std::byte* block, int64_t mapped_bytes) {
  munmap(block, static_cast<size_t>(mapped_bytes));
}

}  // namespace

// The idle blocks of a pool. Thread-safe.
class Workspace::FreeList {
 public:
  explicit FreeList(int64_t max_idle_bytes) : max_idle_bytes_(max_idle_bytes) {}
  ~FreeList() { TrimTo(0); }

  int64_t idle_bytes() const { return idle_bytes_.load(); }

  struct Idle {
    std::byte* block = nullptr;
    int64_t used_bytes = 0;
    uint64_t returned = 0;
  };

  // Returns the block of this size that came back last. Its pointer is null if
  // there is none.
  Idle Take(int64_t mapped_bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(mapped_bytes);
    if (found == blocks_.end()) return {};
    const Idle taken = found->second.back();
    found->second.pop_back();
    if (found->second.empty()) blocks_.erase(found);
    idle_bytes_ -= mapped_bytes;
    return taken;
  }

  void Put(std::byte* block, int64_t mapped_bytes, int64_t used_bytes) {
    {
      const std::lock_guard lock(mutex_);
      blocks_[mapped_bytes].push_back({block, used_bytes, ++returned_});
      idle_bytes_ += mapped_bytes;
    }
    TrimTo(max_idle_bytes_);
  }

  void TrimTo(int64_t idle_bytes) {
    while (idle_bytes_.load() > idle_bytes) {
      const auto [block, mapped_bytes] = TakeOldest();
      if (block == nullptr) return;
      Unmap(block, mapped_bytes);  // slow, so without the lock
    }
  }

 private:
  std::pair<std::byte*, int64_t> TakeOldest() {
    const std::lock_guard lock(mutex_);
    const auto oldest = std::min_element(
        blocks_.begin(), blocks_.end(), [](const auto& a, const auto& b) {
          return a.second.front().returned < b.second.front().returned;
        });
    if (oldest == blocks_.end()) return {nullptr, 0};
    const std::pair taken{oldest->second.front().block, oldest->first};
    oldest->second.pop_front();
    if (oldest->second.empty()) blocks_.erase(oldest);
    idle_bytes_ -= taken.second;
    return taken;
  }

  const int64_t max_idle_bytes_;
  std::mutex mutex_;
  // The idle blocks of each size, in the order in which they came back. No list
  // is empty.
  std::map<int64_t, std::deque<Idle>> blocks_;
  uint64_t returned_ = 0;
  std::atomic<int64_t> idle_bytes_{0};  // written under mutex_
};

void Workspace::Return::operator()(std::byte* block) const {
  if (free_list) {
    free_list->Put(block, mapped_bytes, used_bytes);
  } else {
    FreeSmall(block);
  }
}

absl::StatusOr<Workspace> Workspace::Reserve(int64_t size_bytes) {
  Workspace workspace;
  // Allocates at least one byte, so that data() is never null.
  if (size_bytes <= std::numeric_limits<int64_t>::max() - 2 * kAlignment) {
    workspace.block_.reset(AllocateSmall(std::max<int64_t>(size_bytes, 1)));
  }
  if (workspace.block_ == nullptr) return NoMemory(size_bytes);
  workspace.size_bytes_ = size_bytes;
  return workspace;
}

WorkspacePool::WorkspacePool(int64_t max_idle_bytes)
    : free_list_(std::make_shared<Workspace::FreeList>(max_idle_bytes)) {}

WorkspacePool::~WorkspacePool() { TrimTo(0); }

absl::StatusOr<Workspace> WorkspacePool::Reserve(int64_t size_bytes) {
  if (!kPools || size_bytes < kSmallestBytes) {
    return Workspace::Reserve(size_bytes);
  }
  if (size_bytes > kMaxBlockBytes) return NoMemory(size_bytes);
  const int64_t mapped_bytes = MappedBytes(size_bytes);
  auto [block, used_bytes, returned] = free_list_->Take(mapped_bytes);
  if (block == nullptr) block = Map(mapped_bytes);
  if (block == nullptr) {
    // The memory of idle blocks may be what is missing.
    TrimTo(0);
    block = Map(mapped_bytes);
  }
  if (block == nullptr) return NoMemory(size_bytes);
  if (mapped_bytes >= kHugeBytes) FitBlock(block, used_bytes, size_bytes);
  Workspace workspace;
  workspace.block_ = {block, {free_list_, mapped_bytes, size_bytes}};
  workspace.size_bytes_ = size_bytes;
  return workspace;
}

int64_t WorkspacePool::idle_bytes() const { return free_list_->idle_bytes(); }

void WorkspacePool::TrimTo(int64_t idle_bytes) {
  free_list_->TrimTo(idle_bytes);
}

}  // namespace attnd
