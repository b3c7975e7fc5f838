#include "client/attnctl/interrupt.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>

namespace attnd::attnctl {

Interrupt::Interrupt() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGTERM);
  signal_fd_ = signalfd(-1, &signals_, SFD_CLOEXEC);
  end_fd_ = eventfd(0, EFD_CLOEXEC);
  pthread_sigmask(SIG_SETMASK, nullptr, &mask_before_);
  // Without descriptors, the signals keep their usual effect.
  if (signal_fd_ < 0 || end_fd_ < 0) return;
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  waiter_ = std::thread([this] { Wait(); });
}

Interrupt::~Interrupt() {
  if (waiter_.joinable()) {
    eventfd_write(end_fd_, 1);
    waiter_.join();
  }
  pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
  if (signal_fd_ >= 0) close(signal_fd_);
  if (end_fd_ >= 0) close(end_fd_);
}

void Interrupt::Wait() {
  pollfd waiting[] = {{.fd = signal_fd_, .events = POLLIN, .revents = 0},
                      {.fd = end_fd_, .events = POLLIN, .revents = 0}};
  while (poll(waiting, 2, /*timeout=*/-1) < 0 && errno == EINTR) {
  }
  if ((waiting[0].revents & POLLIN) == 0) return;
  signalfd_siginfo info;
  if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) return;
  // The next signal comes to this thread, and ends the process.
  pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);
  stop_.request_stop();
  while (poll(&waiting[1], 1, /*timeout=*/-1) < 0 && errno == EINTR) {
  }
}

}  // namespace attnd::attnctl
