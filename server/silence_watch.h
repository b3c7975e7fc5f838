// Ends streams whose clients neither send what is awaited nor read what is
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

#include "server/stream_call.h"

namespace attnd::server {

// A thread that looks at every stream four times a timeout. Thread-safe.
class SilenceWatch {
 public:
  // Zero: nobody is watched, and there is no thread.
  explicit SilenceWatch(std::chrono::nanoseconds timeout);
  ~SilenceWatch();
  SilenceWatch(const SilenceWatch&) = delete;
  SilenceWatch& operator=(const SilenceWatch&) = delete;

  // For as long as it is there.
  void Add(std::weak_ptr<StreamCall> call);

 private:
  void Watch();
  // Needs the mutex.
  void ForgetOver();

  const std::chrono::nanoseconds timeout_;
  std::mutex mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::vector<std::weak_ptr<StreamCall>> calls_;
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_SILENCE_WATCH_H_
