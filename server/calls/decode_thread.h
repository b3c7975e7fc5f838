// Runs work that takes long, such as decoding large messages, in one thread of
// its own. gRPC's threads must not do such work, because health checks would
// have to wait for them. Does not use gRPC.
#ifndef ATTND_SERVER_CALLS_DECODE_THREAD_H_
#define ATTND_SERVER_CALLS_DECODE_THREAD_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace attnd::server {

// Runs pieces of work one after the other, in the order in which callers submit
// them. Thread-safe. The queue has no limit of its own, because every call is
// admitted (server/memory/admission.h) before its work is submitted: the slots
// limit how many calls wait, and the memory budget limits what they hold.
class DecodeThread {
 public:
  // Throws std::system_error if the system cannot start another thread.
  DecodeThread();
  // Waits until all submitted work has run.
  ~DecodeThread();
  DecodeThread(const DecodeThread&) = delete;
  DecodeThread& operator=(const DecodeThread&) = delete;

  // Submits `work` and returns at once. The thread runs `work` and destroys it.
  void Run(std::function<void()> work);

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool ending_ = false;
  std::thread thread_;  // must be last, because it uses the other members
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_DECODE_THREAD_H_
