#include "client/attnctl/interrupt.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>
#include <vector>

namespace attnd::attnctl {
namespace {

using std::chrono::steady_clock;

// The exit code if the signals were sent so slowly that the test says nothing.
constexpr int kTooSlow = 77;

// Sends `signal` and waits until the process has taken it.
void SendSignal(int signal) {
  kill(getpid(), signal);
  sigset_t pending;
  do {
    std::this_thread::yield();
    sigpending(&pending);
  } while (sigismember(&pending, signal) == 1);
}

// Sends the signals to a process with an Interrupt, all within 100 ms. Returns
// its wait status, which is that of an exit with 0 if no signal has ended it.
int StatusAfter(const std::vector<int>& signals) {
  int status = 0;
  for (int attempt = 0; attempt < 20; ++attempt) {
    const auto keep = [&status](int got) {
      status = got;
      return true;
    };
    EXPECT_EXIT(
        {
          const Interrupt interrupt;
          const auto start = steady_clock::now();
          for (const int signal : signals) SendSignal(signal);
          const bool at_once =
              steady_clock::now() - start < std::chrono::milliseconds(100);
          std::_Exit(!at_once                             ? kTooSlow
                     : interrupt.token().stop_requested() ? 0
                                                          : 1);
        },
        keep, "");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != kTooSlow) break;
  }
  return status;
}

TEST(InterruptDeathTest, TheSameSignalCountsOnceIfItComesAgainAtOnce) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const int status = StatusAfter({signal, signal});
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
}

TEST(InterruptDeathTest, AnotherSignalEndsTheProcess) {
  EXPECT_EXIT(
      {
        const Interrupt interrupt;
        SendSignal(SIGINT);
        kill(getpid(), SIGTERM);
        for (;;) pause();
      },
      ::testing::KilledBySignal(SIGTERM), "");
}

TEST(InterruptDeathTest, TheSameSignalEndsTheProcessLater) {
  EXPECT_EXIT(
      {
        const Interrupt interrupt;
        SendSignal(SIGINT);
        const auto start = steady_clock::now();
        while (steady_clock::now() - start < std::chrono::milliseconds(100)) {
          std::this_thread::yield();
        }
        // Each of these could be one that still counts as a repetition.
        for (;;) SendSignal(SIGINT);
      },
      ::testing::KilledBySignal(SIGINT), "");
}

}  // namespace
}  // namespace attnd::attnctl
