#include "server/calls/decode_thread.h"

#include <pthread.h>

#include <utility>

namespace attnd::server {

DecodeThread::DecodeThread() : thread_([this] { Loop(); }) {}

DecodeThread::~DecodeThread() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void DecodeThread::Run(uint64_t caller, std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    std::deque<std::function<void()>>& queue = work_of_[caller];
    if (queue.empty()) turns_.push_back(caller);
    queue.push_back(std::move(work));
  }
  changed_.notify_one();
}

void DecodeThread::Loop() {
#ifdef __linux__
  pthread_setname_np(pthread_self(), "attnd-decode");  // for top -H
#endif
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !turns_.empty(); });
    if (turns_.empty()) return;
    const uint64_t caller = turns_.front();
    turns_.pop_front();
    const auto queue = work_of_.find(caller);
    std::function<void()> work = std::move(queue->second.front());
    queue->second.pop_front();
    if (queue->second.empty()) {
      work_of_.erase(queue);
    } else {
      turns_.push_back(caller);
    }
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
  }
}

}  // namespace attnd::server
