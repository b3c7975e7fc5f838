#include "server/process/stop_signals.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "server/process/log_level.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

// LXC ends a container with SIGPWR. SIGXCPU comes at the soft limit of CPU
// time, so that a process can finish its work before the hard limit.
constexpr int kStop[] = {SIGTERM, SIGINT, SIGQUIT, SIGPWR, SIGXCPU};
// The real-time signals are ignored too, but their numbers are not constants.
constexpr int kIgnored[] = {SIGHUP,  SIGUSR2, SIGALRM,  SIGVTALRM,
                            SIGPROF, SIGIO,   SIGSTKFLT};
// How long the server may take to start after a signal has asked it to end.
constexpr std::chrono::milliseconds kStartTime{600};

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : kStop) sigaddset(&signals, signal);
  for (const int signal : kIgnored) sigaddset(&signals, signal);
  sigaddset(&signals, SIGUSR1);
  for (int signal = SIGRTMIN; signal <= SIGRTMAX; ++signal) {
    sigaddset(&signals, signal);
  }
  return signals;
}

StopSignals::Stop StopOf(int signal) {
  return signal == SIGTERM || signal == SIGPWR ? StopSignals::Stop::kAnnounce
                                               : StopSignals::Stop::kDrain;
}

}  // namespace

void StopSignals::Block() {
  const sigset_t signals = Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

StopSignals::StopSignals(std::chrono::milliseconds repeat)
    : repeat_(repeat), thread_([this] { Run(); }) {}

StopSignals::~StopSignals() { End(); }

StopSignals::Stop StopSignals::Wait(Callbacks callbacks) {
  std::unique_lock lock(mutex_);
  callbacks_ = std::move(callbacks);
  changed_.notify_all();
  changed_.wait(lock, [this] { return first_.has_value(); });
  return *first_;
}

bool StopSignals::End() {
  if (!thread_.joinable()) return second_seen_;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
  // The signal only wakes the thread, because it is blocked and the thread
  // waits for it.
  // NOLINTNEXTLINE(bugprone-bad-signal-to-kill-thread)
  pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
  return second_seen_;
}

int StopSignals::NextStop() {
  const sigset_t signals = Signals();
  for (;;) {
    int signal = 0;
    sigwait(&signals, &signal);
    if (std::find(std::begin(kStop), std::end(kStop), signal) !=
        std::end(kStop)) {
      return signal;
    }
    if (signal == SIGUSR1) {
      SwitchDebugLog();
      continue;
    }
    std::function<void()> on_hangup;
    if (signal == SIGHUP) {
      const std::lock_guard lock(mutex_);
      if (callbacks_) on_hangup = callbacks_->on_hangup;
    }
    if (on_hangup) {
      on_hangup();
    } else {
      spdlog::info("signal {} ({}) is ignored", signal, strsignal(signal));
    }
  }
}

void StopSignals::Run() {
  const int first = NextStop();
  {
    std::unique_lock lock(mutex_);
    if (ended_) return;
    first_ = callbacks_ ? StopOf(first) : Stop::kAtOnce;
    changed_.notify_all();
    spdlog::info("signal {}: stopping", first);
    const bool started = changed_.wait_for(
        lock, kStartTime, [this] { return callbacks_ || ended_; });
    if (!started) {
      spdlog::error(
          "the start takes too long after the signal: ending the process "
          "before the start is complete");
      spdlog::default_logger_raw()->flush();
      std::_Exit(EXIT_FAILURE);
    }
  }
  // A signal that came during the start is read only now, so it counts as a
  // repetition. It could change nothing, because kAtOnce cancels all calls.
  const auto begin = std::chrono::steady_clock::now();
  int second = 0;
  bool repeated = false;
  do {
    second = NextStop();
    repeated =
        second == first && std::chrono::steady_clock::now() - begin < repeat_;
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    second_seen_ = !repeated;
    if (repeated) spdlog::info("signal {} came twice, and counts once", first);
  } while (repeated);
  spdlog::warn("signal {} is the second one: cancelling the running calls",
               second);
  callbacks_->on_second();
}

}  // namespace attnd::server
