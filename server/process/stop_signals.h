// Tells the server when a signal asks it to shut down, and keeps other signals
// from ending the process.
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
// process itself. Use at most one object at a time.
class StopSignals {
 public:
  // Blocks all of these signals in the calling thread and in the threads that
  // it starts later, so that only the thread of this class gets them. Call it
  // before the process has other threads.
  static void Block();

  // Starts the thread. If a signal comes before Wait is called, because the
  // server is still starting, it takes effect when Wait is called. If Wait is
  // not called within 600 ms, the thread ends the process with exit code 1.
  StopSignals();
  // Calls End.
  ~StopSignals();

  // Returns as soon as a signal has asked the server to shut down. If another
  // such signal comes after that and before End, the thread calls `on_second`,
  // once.
  void Wait(std::function<void()> on_second);

  // Ends the thread. Later signals have no effect. Returns whether the thread
  // called `on_second`.
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
