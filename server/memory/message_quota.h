// Decides how much memory gRPC may use for messages, so that messages and calls
// together stay within the memory that the server may use. Does not use gRPC.
#ifndef ATTND_SERVER_MEMORY_MESSAGE_QUOTA_H_
#define ATTND_SERVER_MEMORY_MESSAGE_QUOTA_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace attnd::server {

// The memory for the messages of all clients. gRPC receives a whole message
// before it tells the server about it. So messages have a share of the memory
// of their own until the server has them. After that, the call that a message
// belongs to reserves its bytes from the memory budget (Admission), and gRPC's
// quota grows by these bytes, so that the share is free for other messages. If
// the share is used up, gRPC ends arbitrary calls until memory is free again.
// Thread-safe.
class MessageQuota {
 public:
  struct Limits {
    int64_t budget_bytes = 0;    // of Admission, for calls
    int64_t arriving_bytes = 0;  // for messages that arrive
    int64_t kept_bytes = 0;      // how much freed memory malloc may keep
  };

  // `resize` must set gRPC's quota to its argument, the number of bytes that
  // all messages together may take. It is called by the constructor, and
  // whenever that number has changed by several MiB. No lock is held meanwhile,
  // so it may call functions of this object.
  MessageQuota(const Limits& limits, std::function<void(int64_t)> resize);

  // Counts `bytes`, the size of a message that has arrived, with AddHeld for as
  // long as this object exists.
  class Held {
   public:
    Held(std::shared_ptr<MessageQuota> quota, int64_t bytes)
        : quota_(std::move(quota)), bytes_(bytes) {
      quota_->AddHeld(bytes_);
    }
    ~Held() { quota_->RemoveHeld(bytes_); }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

   private:
    const std::shared_ptr<MessageQuota> quota_;
    const int64_t bytes_;
  };

  // Record that `bytes` of a message that the server has are now in buffers of
  // gRPC (AddHeld), or no longer are (RemoveHeld).
  void AddHeld(int64_t bytes);
  void RemoveHeld(int64_t bytes);

  // Call this before a call allocates memory. `reserved_bytes` is what all
  // calls have reserved, and `idle_bytes` is what the WorkspacePool keeps for
  // later calls. If the server could exceed its memory, this makes malloc give
  // the memory of freed messages back to the operating system.
  void MakeRoom(int64_t reserved_bytes, int64_t idle_bytes);

 private:
  // Calls `resize_` if the number of bytes that messages may take has changed
  // by several MiB since the last call. The caller must hold `mutex_` with
  // `lock`, which is released while `resize_` runs.
  void Resize(std::unique_lock<std::mutex>& lock);

  const Limits limits_;
  const std::function<void(int64_t)> resize_;
  const char* const heap_begin_;

  std::mutex mutex_;
  int64_t held_bytes_ = 0;
  int64_t removed_bytes_ = 0;  // since malloc last gave memory back
  int64_t told_bytes_ = -1;    // the last argument of `resize_`; -1: none yet
  bool resizing_ = false;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_MEMORY_MESSAGE_QUOTA_H_
