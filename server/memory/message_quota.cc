#include "server/memory/message_quota.h"

#include <malloc.h>
#include <unistd.h>

#include <cstdlib>
#include <initializer_list>
#include <limits>

#include "base/checked_math.h"

namespace attnd::server {
namespace {

// `resize_` is called only when the quota has changed by at least this much.
constexpr int64_t kStepBytes = int64_t{8} << 20;

// Returns the sum, or the largest int64 if the sum does not fit. That can
// happen because --memory-budget-bytes may be any number.
int64_t SaturatingSum(std::initializer_list<int64_t> terms) {
  return CheckedSum(terms).value_or(std::numeric_limits<int64_t>::max());
}

const char* HeapEnd() { return static_cast<const char*>(sbrk(0)); }

}  // namespace

MessageQuota::MessageQuota(const Limits& limits,
                           std::function<void(int64_t)> resize)
    : limits_(limits), resize_(std::move(resize)), heap_begin_(HeapEnd()) {
  AddHeld(0);
}

void MessageQuota::AddHeld(int64_t bytes) {
  std::unique_lock lock(mutex_);
  held_bytes_ += bytes;
  Resize(lock);
}

void MessageQuota::RemoveHeld(int64_t bytes) {
  std::unique_lock lock(mutex_);
  held_bytes_ -= bytes;
  removed_bytes_ += bytes;
  Resize(lock);
}

// `resize_` is called without the lock, because gRPC may end calls in it. Those
// calls then call RemoveHeld, possibly in this thread.
void MessageQuota::Resize(std::unique_lock<std::mutex>& lock) {
  if (resizing_) return;
  for (;;) {
    const int64_t size_bytes =
        SaturatingSum({limits_.arriving_bytes, held_bytes_});
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

// malloc keeps freed blocks mapped if there are used blocks above them. It
// takes milliseconds to return them, and the next messages then need new pages.
// So this happens only if memory could run out, and only if more has been freed
// since the last time than malloc may keep.
void MessageQuota::MakeRoom(int64_t reserved_bytes, int64_t idle_bytes) {
  {
    const std::lock_guard lock(mutex_);
    const int64_t heap_bytes = HeapEnd() - heap_begin_;
    if (removed_bytes_ <= limits_.kept_bytes ||
        SaturatingSum({reserved_bytes, -held_bytes_, idle_bytes, heap_bytes}) <=
            SaturatingSum({limits_.budget_bytes, limits_.arriving_bytes,
                           limits_.kept_bytes})) {
      return;
    }
    removed_bytes_ = 0;
  }
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace attnd::server
