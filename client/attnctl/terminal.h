// Waits for what the user of a running command does: keys and signals.
#ifndef ATTND_CLIENT_ATTNCTL_TERMINAL_H_
#define ATTND_CLIENT_ATTNCTL_TERMINAL_H_

#include <termios.h>

#include <csignal>
#include <cstddef>
#include <optional>

#include "absl/time/time.h"
#include "base/unique_fd.h"

namespace attnd::attnctl {

// While this object exists, signals that ask the process to end have no effect,
// except that Wait reports them, so that a command can restore the terminal
// before it ends. Make the object before the process starts threads, because
// they inherit which signals are blocked. If the process can open no more
// files, signals keep their effect.
//
// No library such as ncurses does this: attnctl also runs in a container image
// that has no terminfo database, without which these libraries do not work, and
// the few escapes that attnctl draws with are the same on all terminals.
class UserInput {
 public:
  enum class Event { kNone, kQuit, kSuspend, kResize };

  // If `full_screen`, Wait also reports Ctrl-Z and changes of the terminal's
  // size, and if standard input is a terminal, it passes on each key at once,
  // does not show it, and the key q quits.
  explicit UserInput(bool full_screen);
  // Restores the terminal and the effects of signals.
  ~UserInput();
  UserInput(const UserInput&) = delete;
  UserInput& operator=(const UserInput&) = delete;

  // Waits for an event for at most `timeout`. Returns kNone if there is none,
  // and also, before the time is over, after a key without an effect.
  Event Wait(absl::Duration timeout);
  // Restores the terminal, stops the process as Ctrl-Z does, and sets up the
  // terminal again when the process continues.
  void Suspend();

 private:
  void SetUpTerminal();
  void RestoreTerminal();

  sigset_t old_mask_;
  UniqueFd signals_;
  bool reads_keys_;
  std::optional<termios> old_terminal_;  // set while the terminal is set up
};

// The size of the terminal that standard output is.
struct TerminalSize {
  size_t columns = 80;
  size_t rows = 24;
};
// Returns 80 x 24 if the terminal does not know its size.
TerminalSize GetTerminalSize();

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_TERMINAL_H_
