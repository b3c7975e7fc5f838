// Tells the server when a signal asks it to shut down, and in which way, and
// keeps other signals from ending the process.
#ifndef ATTND_SERVER_PROCESS_STOP_SIGNALS_H_
#define ATTND_SERVER_PROCESS_STOP_SIGNALS_H_

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

namespace attnd::server {

// Waits for signals in a thread of its own. SIGTERM, SIGINT, SIGQUIT, SIGPWR
// and SIGXCPU ask the server to end. SIGUSR1 changes the level of the log
// (log_level.h). Other signals that would end a process by default are logged
// and ignored, except those that report a fault of the process itself. Use at
// most one object at a time.
class StopSignals {
 public:
  // How a signal asks the server to shut down.
  enum class Stop {
    // Announce the end, then drain: SIGTERM and SIGPWR, by which service
    // managers and containers stop a program.
    kAnnounce,
    // Drain without an announcement: SIGINT and SIGQUIT, which a user sends
    // from a terminal, and SIGXCPU, after which the kernel soon kills the
    // process.
    kDrain,
    // End without a drain, because the signal came before Wait was called, and
    // therefore before clients could rely on the server.
    kAtOnce,
  };

  // What the thread of this class does after Wait was called. It calls one
  // function after the other.
  struct Callbacks {
    // Called once, when a second signal asks the server to shut down. The same
    // signal again, right after the first one, is not a second one.
    std::function<void()> on_second;
    // Called for each SIGHUP. If it is empty, SIGHUP is logged and ignored.
    std::function<void()> on_hangup = nullptr;
  };

  // Blocks all of these signals in the calling thread and in the threads that
  // it starts later, so that only the thread of this class gets them. Call it
  // before the process has other threads.
  static void Block();

  // Starts the thread. If a signal asks for the end before Wait is called,
  // because the server is still starting, Wait returns kAtOnce. If Wait is not
  // called within 600 ms, the thread ends the process with exit code 1.
  //
  // The same signal counts once if it comes again within `repeat`. The program
  // timeout, for example, sends SIGTERM to its child and then to all processes
  // of its group.
  explicit StopSignals(
      std::chrono::milliseconds repeat = std::chrono::milliseconds(100));
  // Calls End.
  ~StopSignals();

  // Returns as soon as a signal has asked the server to shut down. The thread
  // uses `callbacks` until End.
  Stop Wait(Callbacks callbacks);

  // Ends the thread. Later signals have no effect. Returns whether the thread
  // called `on_second`.
  bool End();

 private:
  void Run();
  // Waits for a signal that asks the server to end, and returns its number.
  int NextStop();

  const std::chrono::milliseconds repeat_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Callbacks> callbacks_;  // set by Wait
  std::optional<Stop> first_;           // what the first signal asks for
  bool second_seen_ = false;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_STOP_SIGNALS_H_
