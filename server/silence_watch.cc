#include "server/silence_watch.h"

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

void SilenceWatch::Add(std::weak_ptr<StreamCall> call) {
  if (!thread_.joinable()) return;
  const std::lock_guard lock(mutex_);
  calls_.push_back(std::move(call));
}

void SilenceWatch::Watch() {
  std::unique_lock lock(mutex_);
  while (!stop_changed_.wait_for(lock, timeout_ / 4, [&] { return stop_; })) {
    std::erase_if(calls_, [](const auto& call) { return call.expired(); });
    const std::vector<std::weak_ptr<StreamCall>> calls = calls_;
    lock.unlock();
    for (const std::weak_ptr<StreamCall>& call : calls) {
      if (const auto there = call.lock()) there->EndIfSilent(timeout_);
    }
    lock.lock();
  }
}

}  // namespace attnd::server
