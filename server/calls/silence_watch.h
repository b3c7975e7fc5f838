// Ends calls whose clients do not send what the server waits for, or do not
// read what it writes, so that no client holds a slot and memory for as long as
// its connection lasts. Knows no gRPC.
#ifndef ATTND_SERVER_CALLS_SILENCE_WATCH_H_
#define ATTND_SERVER_CALLS_SILENCE_WATCH_H_

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace attnd::server {

// A call that waits for its client, in one direction or the other.
class WatchedCall {
 public:
  virtual ~WatchedCall() = default;
  // Ends the call if it has waited for its client for `timeout`, and the client
  // has moved less than kLeastMoveBytes and completed nothing in that time.
  // Thread-safe. May be called at any time, and must not wait.
  virtual void EndIfSilent(std::chrono::nanoseconds timeout) = 0;
};

// A thread that looks at every call four times in each timeout. Thread-safe.
class SilenceWatch {
 public:
  // If `timeout` is zero, no call is watched and there is no thread.
  explicit SilenceWatch(std::chrono::nanoseconds timeout);
  ~SilenceWatch();
  SilenceWatch(const SilenceWatch&) = delete;
  SilenceWatch& operator=(const SilenceWatch&) = delete;

  // Watches `call` for as long as it exists.
  void Add(std::weak_ptr<WatchedCall> call);

 private:
  void Watch();
  // Needs the mutex.
  void ForgetOver();

  const std::chrono::nanoseconds timeout_;
  std::mutex mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::vector<std::weak_ptr<WatchedCall>> calls_;
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_SILENCE_WATCH_H_
