#include "server/calls/silence_watch.h"

#include <utility>

namespace attnd::server {

SilenceWatch::SilenceWatch(std::chrono::nanoseconds timeout)
    : timeout_(timeout) {
  if (timeout_.count() > 0) thread_ = std::thread([this] { Watch(); });
}

SilenceWatch::~SilenceWatch() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  thread_.join();
}

void SilenceWatch::Add(std::weak_ptr<WatchedCall> call) {
  if (!thread_.joinable()) return;
  const std::lock_guard lock(mutex_);
  // Calls that have ended still take some memory here. They are removed before
  // the list grows. The list then grows a lot, so that this happens rarely.
  if (calls_.size() == calls_.capacity()) {
    ForgetEnded();
    calls_.reserve(2 * calls_.size() + 16);
  }
  calls_.push_back(std::move(call));
}

void SilenceWatch::ForgetEnded() {
  std::erase_if(calls_, [](const auto& call) { return call.expired(); });
}

void SilenceWatch::Watch() {
  std::unique_lock lock(mutex_);
  while (!stop_changed_.wait_for(lock, timeout_ / 4, [&] { return stop_; })) {
    ForgetEnded();
    const std::vector<std::weak_ptr<WatchedCall>> calls = calls_;
    lock.unlock();
    for (const std::weak_ptr<WatchedCall>& call : calls) {
      if (const auto live = call.lock()) live->EndIfSilent(timeout_);
    }
    lock.lock();
  }
}

}  // namespace attnd::server
