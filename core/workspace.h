// Memory that is reserved before a job starts, so that kernels never allocate,
// and the pool that keeps such memory mapped from one job to the next.
#ifndef ATTND_CORE_WORKSPACE_H_
#define ATTND_CORE_WORKSPACE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "base/checked_math.h"

namespace attnd {

// Stands for a number of bytes that does not fit into an int64.
inline constexpr int64_t kMaxBytes = kMaxInt64;

// One block of uninitialised memory, aligned to kAlignment bytes. Movable.
// Threads may use different parts of it at the same time.
class Workspace {
 public:
  static constexpr int64_t kAlignment = 64;

  Workspace() = default;

  // Allocates a block. Returns RESOURCE_EXHAUSTED if the system cannot allocate
  // that many bytes. `size_bytes` must not be negative.
  static absl::StatusOr<Workspace> Reserve(int64_t size_bytes);

  std::byte* data() const { return block_.get(); }
  // Returns the size that was passed to Reserve. A block that holds several
  // tensors also has padding between them, so do not use the block as a tensor.
  int64_t size_bytes() const { return size_bytes_; }

  float* floats() const { return reinterpret_cast<float*>(block_.get()); }

 private:
  friend class WorkspacePool;
  class FreeList;

  // Deletes a block: puts it back on the free list of its pool, or frees its
  // memory if it came from no pool.
  struct Return {
    std::shared_ptr<FreeList> free_list;
    int64_t mapped_bytes;
    int64_t used_bytes;  // the first bytes, which may have been touched
    void operator()(std::byte* block) const;
  };

  std::unique_ptr<std::byte, Return> block_;
  int64_t size_bytes_ = 0;
};

// Rounds `bytes` up to a multiple of kAlignment. Returns kMaxBytes if that does
// not fit an int64.
constexpr int64_t AlignedBytes(int64_t bytes) {
  return RoundUp(bytes, Workspace::kAlignment);
}

// Divides a workspace into consecutive pieces. Every size that is passed to Add
// must come from AlignedBytes, so that every piece is aligned.
class ArenaLayout {
 public:
  explicit ArenaLayout(std::byte* first) : next_(first) {}

  template <class T>
  T* Add(int64_t size_bytes) {
    return reinterpret_cast<T*>(std::exchange(next_, next_ + size_bytes));
  }

 private:
  std::byte* next_;
};

// Hands out workspaces, and keeps the memory of deleted ones for the next
// callers that ask for about as many bytes, because the first write to a fresh
// page costs more than a copy into a mapped one. The pool keeps at most
// `max_idle_bytes`; beyond that, it unmaps the block first that was idle
// longest. A block of 2 MiB or more never holds more memory than was asked for,
// rounded up to whole pages. Blocks below kSmallestBytes come from malloc,
// which keeps them itself. Thread-safe. Workspaces may outlive their pool.
class WorkspacePool {
 public:
  static constexpr int64_t kSmallestBytes = int64_t{64} << 10;
  // About as many bytes as a call with the largest message holds if the server
  // runs with default limits.
  static constexpr int64_t kMaxIdleBytes = int64_t{512} << 20;

  explicit WorkspacePool(int64_t max_idle_bytes = kMaxIdleBytes);
  ~WorkspacePool();
  WorkspacePool(const WorkspacePool&) = delete;
  WorkspacePool& operator=(const WorkspacePool&) = delete;

  // See Workspace::Reserve.
  absl::StatusOr<Workspace> Reserve(int64_t size_bytes);

  // Returns how many bytes the pool holds for later callers.
  int64_t idle_bytes() const;

  // Unmaps blocks that nobody uses until the pool holds at most `idle_bytes`.
  // If it does already, this costs one atomic load.
  void TrimTo(int64_t idle_bytes);

 private:
  const std::shared_ptr<Workspace::FreeList> free_list_;
};

}  // namespace attnd

#endif  // ATTND_CORE_WORKSPACE_H_
