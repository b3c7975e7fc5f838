#include "server/process/stop_signals.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <semaphore>

namespace attnd::server {
namespace {

// Runs `test` in its own process, because signals affect the whole process. The
// exit code says whether it succeeded.
void InItsOwnProcess(const std::function<int()>& test, int exit_code = 0,
                     const char* said = "") {
  EXPECT_EXIT(
      {
        StopSignals::Block();
        std::exit(test());
      },
      ::testing::ExitedWithCode(exit_code), said);
}

void Send(int signal) { kill(getpid(), signal); }

TEST(StopSignalsDeathTest, AskForTheEnd) {
  for (const int signal : {SIGTERM, SIGINT, SIGQUIT, SIGPWR, SIGXCPU}) {
    InItsOwnProcess([signal] {
      StopSignals signals;
      Send(signal);
      signals.Wait([] { std::abort(); });
      return signals.End() ? 1 : 0;
    });
  }
}

TEST(StopSignalsDeathTest, ASecondOneIsTold) {
  InItsOwnProcess([] {
    StopSignals signals;
    std::binary_semaphore second(0);
    Send(SIGTERM);
    signals.Wait([&] { second.release(); });
    Send(SIGINT);
    second.acquire();
    return signals.End() ? 0 : 1;
  });
}

TEST(StopSignalsDeathTest, OthersAreIgnored) {
  InItsOwnProcess([] {
    StopSignals signals;
    for (const int signal : {SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM,
                             SIGPROF, SIGIO, SIGSTKFLT, SIGRTMIN, SIGRTMAX}) {
      Send(signal);
      Send(signal);
    }
    Send(SIGTERM);
    signals.Wait([] { std::abort(); });
    return signals.End() ? 1 : 0;
  });
}

TEST(StopSignalsDeathTest, AStartThatTakesLongIsNotWaitedFor) {
  InItsOwnProcess(
      [] {
        const StopSignals signals;
        Send(SIGTERM);
        for (;;) pause();
        return 0;
      },
      EXIT_FAILURE, "");
}

TEST(StopSignalsDeathTest, AStartThatFailsEndsTheThread) {
  InItsOwnProcess([] {
    const StopSignals signals;
    return 0;
  });
}

}  // namespace
}  // namespace attnd::server
