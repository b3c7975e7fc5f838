// Lets a command end early, with what it has, when the user presses Ctrl-C.
#ifndef ATTND_CLIENT_ATTNCTL_INTERRUPT_H_
#define ATTND_CLIENT_ATTNCTL_INTERRUPT_H_

#include <signal.h>

#include <optional>
#include <stop_token>
#include <thread>

namespace attnd::attnctl {

// While it exists, the first SIGINT or SIGTERM requests a stop. The second one
// ends the process, as usual. The same signal counts once if it comes again
// within 100 ms. Create it before the process has other threads,
// and destroy it in the same thread: it blocks the signals in this thread and
// in those that start later.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  std::stop_token token() const { return stop_.get_token(); }

 private:
  void Wait();
  // Returns the signal that comes next. Returns nothing after `timeout_ms`, or
  // if this object is destroyed.
  std::optional<int> Next(int timeout_ms);

  std::stop_source stop_;
  sigset_t signals_;
  sigset_t mask_before_;
  int signal_fd_ = -1;  // readable when a signal has arrived
  int end_fd_ = -1;     // readable when this object is destroyed
  std::thread waiter_;
};

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_INTERRUPT_H_
