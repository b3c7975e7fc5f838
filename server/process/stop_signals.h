// Turns signals into a drain of the server, and ignores others.
#ifndef ATTND_SERVER_PROCESS_STOP_SIGNALS_H_
#define ATTND_SERVER_PROCESS_STOP_SIGNALS_H_

#include <condition_variable>
#include <csignal>
#include <functional>
#include <mutex>
#include <thread>

namespace attnd::server {

// Waits for signals in a thread of its own. SIGTERM, SIGINT, SIGQUIT, SIGPWR
// and SIGXCPU ask the server to end. Other signals that would end a process by
// default are logged and ignored, except those that report a fault of the
// process itself.
class StopSignals {
 public:
  // Blocks all of these signals in the calling thread and in the threads that
  // it starts later. Call it before there are other threads.
  static void Block();

  // Starts the thread. A signal that comes before Wait is called, while the
  // server starts, is kept for Wait. If Wait is not called within 600 ms of it,
  // the thread ends the process with exit code 1.
  StopSignals();
  ~StopSignals();

  // Returns when a signal has asked for the end, which may be at once. From
  // then on until End, the next such signal makes the thread call `on_second`,
  // once.
  void Wait(std::function<void()> on_second);

  // Ends the thread; signals do nothing any more. Returns whether `on_second`
  // was called.
  bool End();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> on_second_;  // set by Wait
  bool first_seen_ = false;
  bool second_seen_ = false;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_STOP_SIGNALS_H_
