#include "client/attnctl/terminal.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace attnd::attnctl {
namespace {

// Signals that the process was started to ignore, for example by nohup, stay
// ignored.
void AddUnlessIgnored(int signal, sigset_t* signals) {
  struct sigaction action = {};
  if (sigaction(signal, nullptr, &action) == 0 &&
      action.sa_handler != SIG_IGN) {
    sigaddset(signals, signal);
  }
}

}  // namespace

UserInput::UserInput(bool full_screen)
    : reads_keys_(full_screen && isatty(STDIN_FILENO) != 0) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
    AddUnlessIgnored(signal, &signals);
  }
  if (full_screen) {
    AddUnlessIgnored(SIGTSTP, &signals);
    sigaddset(&signals, SIGWINCH);
  }
  pthread_sigmask(SIG_SETMASK, nullptr, &old_mask_);
  signals_ = UniqueFd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  // Without a descriptor, nobody could read the signals, so they keep their
  // usual effect.
  if (signals_.valid()) pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  SetUpTerminal();
}

UserInput::~UserInput() {
  RestoreTerminal();
  pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
}

void UserInput::SetUpTerminal() {
  termios terminal = {};
  if (!reads_keys_ || tcgetattr(STDIN_FILENO, &terminal) != 0) return;
  old_terminal_ = terminal;
  terminal.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
  tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
}

void UserInput::RestoreTerminal() {
  // TCSAFLUSH also drops the keys that nobody has read, so that the shell does
  // not get them.
  if (old_terminal_) tcsetattr(STDIN_FILENO, TCSAFLUSH, &*old_terminal_);
  old_terminal_.reset();
}

void UserInput::Suspend() {
  RestoreTerminal();
  raise(SIGSTOP);
  SetUpTerminal();
}

UserInput::Event UserInput::Wait(absl::Duration timeout) {
  std::array<pollfd, 2> inputs = {
      pollfd{.fd = signals_.get(), .events = POLLIN, .revents = 0},
      pollfd{.fd = reads_keys_ ? STDIN_FILENO : -1,
             .events = POLLIN,
             .revents = 0}};
  const timespec limit =
      absl::ToTimespec(std::max(timeout, absl::ZeroDuration()));
  if (ppoll(inputs.data(), inputs.size(), &limit, nullptr) <= 0) {
    return Event::kNone;
  }
  if (inputs[0].revents != 0) {
    signalfd_siginfo signal = {};
    if (read(signals_.get(), &signal, sizeof(signal)) == sizeof(signal)) {
      if (signal.ssi_signo == SIGTSTP) return Event::kSuspend;
      if (signal.ssi_signo == SIGWINCH) return Event::kResize;
      return Event::kQuit;
    }
  }
  if (inputs[1].revents != 0) {
    std::array<char, 64> keys;
    const ssize_t count = read(STDIN_FILENO, keys.data(), keys.size());
    // No bytes mean that the terminal is gone.
    if (count <= 0) return Event::kQuit;
    if (std::count(keys.begin(), keys.begin() + count, 'q') > 0) {
      return Event::kQuit;
    }
  }
  return Event::kNone;
}

TerminalSize GetTerminalSize() {
  winsize size = {};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 ||
      size.ws_row == 0) {
    return {};
  }
  return {.columns = size.ws_col, .rows = size.ws_row};
}

}  // namespace attnd::attnctl
