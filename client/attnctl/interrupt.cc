#include "client/attnctl/interrupt.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>

namespace attnd::attnctl {
namespace {

using std::chrono::steady_clock;

// For so long after the first signal, the same one is not a second one. The
// program timeout, for example, sends SIGTERM to its child and then to all
// processes of its group.
constexpr std::chrono::milliseconds kRepeat{100};

}  // namespace

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

std::optional<int> Interrupt::Next(int timeout_ms) {
  pollfd waiting[] = {{.fd = signal_fd_, .events = POLLIN, .revents = 0},
                      {.fd = end_fd_, .events = POLLIN, .revents = 0}};
  while (poll(waiting, 2, timeout_ms) < 0 && errno == EINTR) {
  }
  signalfd_siginfo info;
  if ((waiting[0].revents & POLLIN) == 0 ||
      read(signal_fd_, &info, sizeof(info)) != sizeof(info)) {
    return std::nullopt;
  }
  return static_cast<int>(info.ssi_signo);
}

void Interrupt::Wait() {
  const std::optional<int> first = Next(/*timeout_ms=*/-1);
  if (!first) return;
  stop_.request_stop();
  const steady_clock::time_point end = steady_clock::now() + kRepeat;
  std::optional<int> second;
  do {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(end - steady_clock::now());
    second = Next(std::max(0, static_cast<int>(left.count())));
  } while (second == first);
  // From now on, a signal comes to this thread, and ends the process.
  pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);
  if (second) raise(*second);
  pollfd destroyed{.fd = end_fd_, .events = POLLIN, .revents = 0};
  while (poll(&destroyed, 1, /*timeout=*/-1) < 0 && errno == EINTR) {
  }
}

}  // namespace attnd::attnctl
