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

void DecodeThread::Run(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  changed_.notify_one();
}

void DecodeThread::Loop() {
#ifdef __linux__
  pthread_setname_np(pthread_self(), "attnd-decode");  // for top -H
#endif
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !queue_.empty(); });
    if (queue_.empty()) return;
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
  }
}

}  // namespace attnd::server
