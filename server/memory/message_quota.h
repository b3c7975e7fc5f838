// How much memory gRPC may take for messages, so that they and the budget of
// requests together stay within what the server has. Knows no gRPC.
#ifndef ATTND_SERVER_MEMORY_MESSAGE_QUOTA_H_
#define ATTND_SERVER_MEMORY_MESSAGE_QUOTA_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace attnd::server {

// gRPC receives a message to its end before anybody is asked to let it in, and
// says nothing of it until then. So what arrives has a share of its own, beside
// the messages of requests, which are part of what those have reserved. Where
// it is full gRPC ends calls until it is not. Thread-safe.
class MessageQuota {
 public:
  struct Limits {
    int64_t budget_bytes = 0;    // of requests, by Admission
    int64_t arriving_bytes = 0;  // of messages that are not let in
    int64_t kept_bytes = 0;      // that malloc may keep of messages that went
  };

  // `resize` takes what all messages may come to, and may call back. It is
  // called at once, and again when that has changed by some MiB.
  MessageQuota(const Limits& limits, std::function<void(int64_t)> resize);

  // A message that is all there, until the object goes.
  class Held {
   public:
    Held(std::shared_ptr<MessageQuota> quota, int64_t bytes)
        : quota_(std::move(quota)), bytes_(bytes) {
      quota_->Hold(bytes_);
    }
    ~Held() { quota_->Drop(bytes_); }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

   private:
    const std::shared_ptr<MessageQuota> quota_;
    const int64_t bytes_;
  };

  // Of what requests have reserved, gRPC holds so much more, or less.
  void Hold(int64_t bytes);
  void Drop(int64_t bytes);

  // Before a request allocates: all of them have reserved `reserved_bytes`, and
  // `idle_bytes` lie in the pool. malloc gives back what it keeps, where that
  // would be too much.
  void MakeRoom(int64_t reserved_bytes, int64_t idle_bytes);

 private:
  // With `mutex_` held, which is let go for a while.
  void Resize(std::unique_lock<std::mutex>& lock);

  const Limits limits_;
  const std::function<void(int64_t)> resize_;
  const char* const heap_begin_;

  std::mutex mutex_;
  int64_t held_bytes_ = 0;
  int64_t dropped_bytes_ = 0;  // since malloc gave back what it kept
  int64_t told_bytes_ = -1;    // to `resize_`
  bool resizing_ = false;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_MEMORY_MESSAGE_QUOTA_H_
