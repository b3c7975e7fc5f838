// What a signal does to the process: it drains the server, or nothing.
#ifndef ATTND_SERVER_STOP_SIGNALS_H_
#define ATTND_SERVER_STOP_SIGNALS_H_

#include <condition_variable>
#include <csignal>
#include <functional>
#include <mutex>
#include <thread>

namespace attnd::server {

// Waits for signals in a thread of its own. SIGTERM, SIGINT, SIGQUIT, SIGPWR
// and SIGXCPU ask for the end. The others that would end a process by default,
// and that no fault of its own raises, are logged and ignored.
class StopSignals {
 public:
  // Blocks all of these signals in the calling thread, and so in the threads
  // that it starts from then on. Called before there are other threads.
  static void Block();

  // Starts the thread. Until Wait is called the server starts, and a signal is
  // kept for Wait; where that is not called within 600 ms the thread ends the
  // process with exit code 1.
  StopSignals();
  ~StopSignals();

  // Returns when the end is asked for, which may be at once. From then on until
  // End, another such signal calls `on_second` in the thread, once.
  void Wait(std::function<void()> on_second);

  // Signals do nothing any more. Says whether `on_second` was called.
  bool End();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> on_second_;  // set while somebody waits, or did
  bool first_seen_ = false;
  bool second_seen_ = false;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_STOP_SIGNALS_H_
