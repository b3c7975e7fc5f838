// A thread for messages that take long to decode, so that gRPC's threads, which
// answer health checks too, never do that. Knows no gRPC and no messages.
#ifndef ATTND_SERVER_DECODE_THREAD_H_
#define ATTND_SERVER_DECODE_THREAD_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace attnd::server {

// Runs pieces of work one after the other, in the order of their submission.
// Thread-safe. The queue has no limit of its own: whoever submits work has
// admitted its call before, so that slots bound how many wait, and the memory
// budget what they hold.
class DecodeThread {
 public:
  // Throws std::system_error where the system starts no more threads.
  DecodeThread();
  // Runs what is left and waits for it.
  ~DecodeThread();
  DecodeThread(const DecodeThread&) = delete;
  DecodeThread& operator=(const DecodeThread&) = delete;

  // Returns at once. `work` is destroyed in the thread, too.
  void Run(std::function<void()> work);

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool ending_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_DECODE_THREAD_H_
