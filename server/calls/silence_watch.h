// Ends calls whose client does not send what the server waits for, or does not
// read what the server sends. Without this, such a client would hold a slot and
// memory of the server until it closes its connection. Does not use gRPC.
#ifndef ATTND_SERVER_CALLS_SILENCE_WATCH_H_
#define ATTND_SERVER_CALLS_SILENCE_WATCH_H_

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace attnd::server {

// A call that may have to wait for its client.
class WatchedCall {
 public:
  virtual ~WatchedCall() = default;
  // Ends the call if it has been waiting for its client for `timeout`, and in
  // that time the client has sent or read less than kMinProgressBytes and has
  // not completed the message that the call waits for. Thread-safe. It may be
  // called at any time, and must return at once.
  virtual void EndIfSilent(std::chrono::nanoseconds timeout) = 0;
};

// Calls EndIfSilent of every watched call four times in each period of
// `timeout`, in a thread of its own. Thread-safe.
class SilenceWatch {
 public:
  // If `timeout` is 0, there is no thread, and no call is watched.
  explicit SilenceWatch(std::chrono::nanoseconds timeout);
  ~SilenceWatch();
  SilenceWatch(const SilenceWatch&) = delete;
  SilenceWatch& operator=(const SilenceWatch&) = delete;

  // Watches `call` for as long as it exists.
  void Add(std::weak_ptr<WatchedCall> call);

 private:
  void Watch();
  // Removes the calls that no longer exist from `calls_`. The caller must hold
  // `mutex_`.
  void ForgetEnded();

  const std::chrono::nanoseconds timeout_;
  std::mutex mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::vector<std::weak_ptr<WatchedCall>> calls_;
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_SILENCE_WATCH_H_
