// Ends calls whose clients neither send what is awaited nor take what is
// written, so that nobody holds a slot and memory for as long as a connection
// lasts. Knows no gRPC.
#ifndef ATTND_SERVER_SILENCE_WATCH_H_
#define ATTND_SERVER_SILENCE_WATCH_H_

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
  // Ends the call where it has waited for `timeout` for its client, which moved
  // less than kLeastMoveBytes meanwhile and completed nothing. Thread-safe; may
  // come at any time; must not wait.
  virtual void EndIfSilent(std::chrono::nanoseconds timeout) = 0;
};

// A thread that looks at every call four times a timeout. Thread-safe.
class SilenceWatch {
 public:
  // Zero: nobody is watched, and there is no thread.
  explicit SilenceWatch(std::chrono::nanoseconds timeout);
  ~SilenceWatch();
  SilenceWatch(const SilenceWatch&) = delete;
  SilenceWatch& operator=(const SilenceWatch&) = delete;

  // For as long as it is there.
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

#endif  // ATTND_SERVER_SILENCE_WATCH_H_
