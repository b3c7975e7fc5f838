// Memory that is reserved before a job starts, so that nothing allocates while
// a kernel runs, and the pool that keeps it mapped from one job to the next.
// Knows nothing of what is kept in it.
#ifndef ATTND_CORE_WORKSPACE_H_
#define ATTND_CORE_WORKSPACE_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "core/checked_math.h"

namespace attnd {

// What stands for byte counts that do not fit.
inline constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max();

// One block of uninitialised memory, aligned to kAlignment. Movable; not
// thread-safe beyond what its users divide among themselves.
class Workspace {
 public:
  static constexpr int64_t kAlignment = 64;

  Workspace() = default;

  // A block of its own. RESOURCE_EXHAUSTED where the system has none of this
  // size. `size_bytes` >= 0.
  static absl::StatusOr<Workspace> Reserve(int64_t size_bytes);

  std::byte* data() const { return block_.get(); }
  // The size that Reserve was asked for. A block that holds several tensors
  // also has padding between them, so do not use the block as a tensor.
  int64_t size_bytes() const { return size_bytes_; }

  // The block as floats.
  float* floats() const { return reinterpret_cast<float*>(block_.get()); }

 private:
  friend class WorkspacePool;
  class Shelf;

  // Puts a block back on its shelf, or frees it where it has none.
  struct Return {
    std::shared_ptr<Shelf> shelf;
    int64_t mapped_bytes;
    void operator()(std::byte* block) const;
  };

  std::unique_ptr<std::byte, Return> block_;
  int64_t size_bytes_ = 0;
};

// A part of a workspace that the next one may follow: in whole alignments, or
// kMaxBytes where there is no such number.
inline int64_t AlignedBytes(const std::optional<int64_t>& bytes) {
  return bytes && *bytes < kMaxBytes - Workspace::kAlignment
             ? RoundUp(*bytes, Workspace::kAlignment)
             : kMaxBytes;
}

// Divides a workspace into such parts, one after the other.
class Carver {
 public:
  explicit Carver(std::byte* first) : next_(first) {}

  template <class T>
  T* Take(int64_t size_bytes) {
    return reinterpret_cast<T*>(std::exchange(next_, next_ + size_bytes));
  }

 private:
  std::byte* next_;
};

// Hands out workspaces, and keeps those that come back for the next that asks
// for about as much: the first touch of fresh memory costs more than a copy
// into it. What is kept is bounded; the block that was idle longest goes first.
// Blocks below kSmallestBytes are malloc's, which keeps such by itself.
// Thread-safe. Its workspaces may outlive it.
class WorkspacePool {
 public:
  static constexpr int64_t kSmallestBytes = int64_t{64} << 10;
  // About what a call of the largest message by default holds.
  static constexpr int64_t kMaxIdleBytes = int64_t{512} << 20;

  explicit WorkspacePool(int64_t max_idle_bytes = kMaxIdleBytes);
  ~WorkspacePool();
  WorkspacePool(const WorkspacePool&) = delete;
  WorkspacePool& operator=(const WorkspacePool&) = delete;

  // As Workspace::Reserve.
  absl::StatusOr<Workspace> Reserve(int64_t size_bytes);

  // What is mapped and in nobody's hands.
  int64_t idle_bytes() const;

  // Unmaps idle blocks until no more than `idle_bytes` are left. Costs one
  // atomic load where that is so already.
  void TrimTo(int64_t idle_bytes);

 private:
  const std::shared_ptr<Workspace::Shelf> shelf_;
};

}  // namespace attnd

#endif  // ATTND_CORE_WORKSPACE_H_
