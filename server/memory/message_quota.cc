#include "server/memory/message_quota.h"

#include <malloc.h>
#include <unistd.h>

#include <cstdlib>
#include <initializer_list>
#include <limits>

#include "core/checked_math.h"

namespace attnd::server {
namespace {

// Messages of less than this are no reason to resize.
constexpr int64_t kStepBytes = int64_t{8} << 20;

// The sum, or the largest int64 if the sum does not fit: a budget may have any
// size.
int64_t SumOrMost(std::initializer_list<int64_t> terms) {
  return CheckedSum(terms).value_or(std::numeric_limits<int64_t>::max());
}

const char* HeapEnd() { return static_cast<const char*>(sbrk(0)); }

}  // namespace

MessageQuota::MessageQuota(const Limits& limits,
                           std::function<void(int64_t)> resize)
    : limits_(limits), resize_(std::move(resize)), heap_begin_(HeapEnd()) {
  Hold(0);
}

void MessageQuota::Hold(int64_t bytes) {
  std::unique_lock lock(mutex_);
  held_bytes_ += bytes;
  Resize(lock);
}

void MessageQuota::Drop(int64_t bytes) {
  std::unique_lock lock(mutex_);
  held_bytes_ -= bytes;
  dropped_bytes_ += bytes;
  Resize(lock);
}

// Tells without the lock: calls that are ended by it come back here, perhaps in
// this thread.
void MessageQuota::Resize(std::unique_lock<std::mutex>& lock) {
  if (resizing_) return;
  for (;;) {
    const int64_t size_bytes = SumOrMost({limits_.arriving_bytes, held_bytes_});
    const bool told = told_bytes_ >= 0;
    if (told && std::abs(size_bytes - told_bytes_) < kStepBytes) return;
    told_bytes_ = size_bytes;
    resizing_ = true;
    lock.unlock();
    resize_(size_bytes);
    lock.lock();
    resizing_ = false;
  }
}

// Blocks that were freed between others stay mapped, below the end of the heap.
// Giving them back costs milliseconds and the next messages their pages, so it
// is done where it must be, and not before as much was freed again as may be
// kept.
void MessageQuota::MakeRoom(int64_t reserved_bytes, int64_t idle_bytes) {
  {
    const std::lock_guard lock(mutex_);
    const int64_t heap_bytes = HeapEnd() - heap_begin_;
    if (dropped_bytes_ <= limits_.kept_bytes ||
        SumOrMost({reserved_bytes, -held_bytes_, idle_bytes, heap_bytes}) <=
            SumOrMost({limits_.budget_bytes, limits_.arriving_bytes,
                       limits_.kept_bytes})) {
      return;
    }
    dropped_bytes_ = 0;
  }
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace attnd::server
