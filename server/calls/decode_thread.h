// Runs work that takes long, such as decoding large messages, in one thread of
// its own. gRPC's threads must not do such work, because health checks would
// have to wait for them. Does not use gRPC.
#ifndef ATTND_SERVER_CALLS_DECODE_THREAD_H_
#define ATTND_SERVER_CALLS_DECODE_THREAD_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/container/flat_hash_map.h"

namespace attnd::server {

// Runs pieces of work one after the other. The callers take turns, so that one
// with many large messages does not make another wait for all of them. The work
// of one caller runs in the order in which it was submitted. Thread-safe. The
// queues have no limit of their own, because every call is admitted
// (server/memory/admission.h) before its work is submitted: the slots limit how
// many calls wait, and the memory budget limits what they hold.
class DecodeThread {
 public:
  // Throws std::system_error if the system cannot start another thread.
  DecodeThread();
  // Waits until all submitted work has run.
  ~DecodeThread();
  DecodeThread(const DecodeThread&) = delete;
  DecodeThread& operator=(const DecodeThread&) = delete;

  // Submits `work` for a call of `caller`, which is the number of who calls
  // (Admission::Admit), and returns at once. The thread runs `work` and
  // destroys it.
  void Run(uint64_t caller, std::function<void()> work);

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable changed_;
  // The callers that have work, in the order of their turns, and their work.
  std::deque<uint64_t> turns_;
  absl::flat_hash_map<uint64_t, std::deque<std::function<void()>>> work_of_;
  bool ending_ = false;
  std::thread thread_;  // must be last, because it uses the other members
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_DECODE_THREAD_H_
