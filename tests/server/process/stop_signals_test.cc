#include "server/process/stop_signals.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <semaphore>
#include <string>
#include <thread>
#include <utility>

#include "server/process/log_level.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/spdlog.h"

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

// Sends `signal` as soon as Wait has its callbacks, which a first SIGHUP shows.
StopSignals::Stop StopAfterWait(StopSignals& signals, int signal) {
  std::atomic<bool> waits = false;
  std::thread sender([&] {
    while (!waits) {
      Send(SIGHUP);
      std::this_thread::yield();
    }
    Send(signal);
  });
  const StopSignals::Stop stop = signals.Wait(
      {.on_second = [] { std::abort(); }, .on_hangup = [&] { waits = true; }});
  sender.join();
  return stop;
}

// Calls `then` when the log says that a signal stops the process.
class StopLine : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit StopLine(std::function<void()> then) : then_(std::move(then)) {}

 protected:
  void sink_it_(const spdlog::details::log_msg& line) override {
    const std::string text(line.payload.data(), line.payload.size());
    if (text.find("stopping") != std::string::npos) then_();
  }
  void flush_() override {}

 private:
  std::function<void()> then_;
};

TEST(StopSignalsDeathTest, TheSignalSaysHowToEnd) {
  struct Case {
    int signal;
    StopSignals::Stop stop;
  };
  for (const Case& each : {Case{SIGTERM, StopSignals::Stop::kAnnounce},
                           {SIGPWR, StopSignals::Stop::kAnnounce},
                           {SIGINT, StopSignals::Stop::kDrain},
                           {SIGQUIT, StopSignals::Stop::kDrain},
                           {SIGXCPU, StopSignals::Stop::kDrain}}) {
    InItsOwnProcess([each] {
      StopSignals signals;
      if (StopAfterWait(signals, each.signal) != each.stop) return 2;
      return signals.End() ? 1 : 0;
    });
  }
}

TEST(StopSignalsDeathTest, ASignalDuringTheStartIsNotAnnounced) {
  InItsOwnProcess([] {
    std::binary_semaphore stopping(0);
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "test", std::make_shared<StopLine>([&] { stopping.release(); })));
    StopSignals signals;
    Send(SIGTERM);
    stopping.acquire();
    const StopSignals::Stop stop =
        signals.Wait({.on_second = [] { std::abort(); }});
    return stop == StopSignals::Stop::kAtOnce && !signals.End() ? 0 : 1;
  });
}

TEST(StopSignalsDeathTest, ASecondOneIsTold) {
  InItsOwnProcess([] {
    StopSignals signals;
    std::binary_semaphore second(0);
    Send(SIGTERM);
    signals.Wait({.on_second = [&] { second.release(); }});
    Send(SIGINT);
    second.acquire();
    return signals.End() ? 0 : 1;
  });
}

TEST(StopSignalsDeathTest, TheSameSignalCountsOnceIfItComesAgainAtOnce) {
  InItsOwnProcess([] {
    StopSignals signals(std::chrono::hours(1));
    std::atomic<bool> is_second = false;
    std::binary_semaphore hangup(0);
    Send(SIGTERM);
    signals.Wait({.on_second = [&] { is_second = true; },
                  .on_hangup = [&] { hangup.release(); }});
    for (int i = 0; i < 3; ++i) {
      Send(SIGTERM);
      // After the thread has read SIGHUP, it has read SIGTERM too: signals that
      // wait have an order, but the thread may have read SIGHUP before.
      for (int j = 0; j < 2; ++j) {
        Send(SIGHUP);
        hangup.acquire();
      }
    }
    return is_second || signals.End() ? 1 : 0;
  });
}

TEST(StopSignalsDeathTest, TheSameSignalIsASecondOneLater) {
  InItsOwnProcess([] {
    StopSignals signals(std::chrono::milliseconds(0));
    std::binary_semaphore second(0);
    Send(SIGTERM);
    signals.Wait({.on_second = [&] { second.release(); }});
    Send(SIGTERM);
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
    signals.Wait({.on_second = [] { std::abort(); }});
    return signals.End() ? 1 : 0;
  });
}

TEST(StopSignalsDeathTest, AHangupIsToldAfterAStopToo) {
  InItsOwnProcess([] {
    StopSignals signals;
    std::binary_semaphore hangup(0);
    Send(SIGTERM);
    signals.Wait({.on_second = [] { std::abort(); },
                  .on_hangup = [&] { hangup.release(); }});
    Send(SIGHUP);
    hangup.acquire();
    return signals.End() ? 1 : 0;
  });
}

TEST(StopSignalsDeathTest, SigUsr1SwitchesTheLevelOfTheLog) {
  for (const char* level : {"debug", "info", "error"}) {
    InItsOwnProcess(
        [level] {
          SetLogLevel(level);
          const spdlog::level::level_enum before = spdlog::get_level();
          for (const auto expected : {spdlog::level::debug, before}) {
            StopSignals signals;
            Send(SIGUSR1);
            // The thread takes SIGUSR1 first, because its number is lower.
            Send(SIGTERM);
            signals.Wait({.on_second = [] { std::abort(); }});
            signals.End();
            if (spdlog::get_level() != expected) return 1;
          }
          return 0;
        },
        0, "");
  }
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
