// Memory that is reserved before a job starts, so that nothing allocates while
// a kernel runs, and the pool that keeps it mapped from one job to the next.
#ifndef ATTND_CORE_WORKSPACE_H_
#define ATTND_CORE_WORKSPACE_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "base/checked_math.h"

namespace attnd {

// Stands for a number of bytes that does not fit into an int64.
inline constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max();

// One block of uninitialised memory, aligned to kAlignment. Movable. Threads
// may use different pieces of it at once.
class Workspace {
 public:
  static constexpr int64_t kAlignment = 64;

  Workspace() = default;

  // Allocates a block. Returns RESOURCE_EXHAUSTED if the system has none of
  // this size. `size_bytes` must not be negative.
  static absl::StatusOr<Workspace> Reserve(int64_t size_bytes);

  std::byte* data() const { return block_.get(); }
  // Returns the size that was passed to Reserve. A block that holds several
  // tensors also has padding between them, so do not use the block as a tensor.
  int64_t size_bytes() const { return size_bytes_; }

  float* floats() const { return reinterpret_cast<float*>(block_.get()); }

 private:
  friend class WorkspacePool;
  class FreeList;

  // Puts a block back on its free list, or frees it if it has none.
  struct Return {
    std::shared_ptr<FreeList> free_list;
    int64_t mapped_bytes;
    void operator()(std::byte* block) const;
  };

  std::unique_ptr<std::byte, Return> block_;
  int64_t size_bytes_ = 0;
};

// Rounds `bytes` up to a multiple of kAlignment. Returns kMaxBytes if `bytes`
// is unset or would overflow.
inline int64_t AlignedBytes(const std::optional<int64_t>& bytes) {
  return bytes && *bytes < kMaxBytes - Workspace::kAlignment
             ? RoundUp(*bytes, Workspace::kAlignment)
             : kMaxBytes;
}

// Divides a workspace into consecutive pieces. Each size must be a result of
// AlignedBytes, so that every piece is aligned.
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

// Hands out workspaces, and keeps returned ones for callers that ask for about
// as many bytes, because the first touch of fresh memory costs more than a copy
// into it. The pool keeps a limited number of bytes; beyond that, it unmaps the
// block that was idle longest first. Blocks below kSmallestBytes come from
// malloc, which keeps them itself. Thread-safe. Workspaces may outlive their
// pool.
class WorkspacePool {
 public:
  static constexpr int64_t kSmallestBytes = int64_t{64} << 10;
  // About as many bytes as a call of the largest message holds by default.
  static constexpr int64_t kMaxIdleBytes = int64_t{512} << 20;

  explicit WorkspacePool(int64_t max_idle_bytes = kMaxIdleBytes);
  ~WorkspacePool();
  WorkspacePool(const WorkspacePool&) = delete;
  WorkspacePool& operator=(const WorkspacePool&) = delete;

  // See Workspace::Reserve.
  absl::StatusOr<Workspace> Reserve(int64_t size_bytes);

  // Returns the number of bytes that are mapped but not handed out.
  int64_t idle_bytes() const;

  // Unmaps idle blocks until at most `idle_bytes` are left. Costs one atomic
  // load if that is already so.
  void TrimTo(int64_t idle_bytes);

 private:
  const std::shared_ptr<Workspace::FreeList> free_list_;
};

}  // namespace attnd

#endif  // ATTND_CORE_WORKSPACE_H_
