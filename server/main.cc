// attnd: options in, a server up, signals to a drain. Nothing else.
#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "server/library_logs.h"
#include "server/log_sink.h"
#include "server/server.h"
#include "server/server_config.h"
#include "spdlog/spdlog.h"

namespace {

using attnd::server::CommandLine;
using attnd::server::LogSink;
using attnd::server::Server;
using attnd::server::ServerConfig;

// gRPC receives a message into blocks of 64 KiB from malloc. By default glibc
// unmaps them as soon as 128 KiB at the end of a heap are free, and deletes the
// heaps of threads, so every message was received into fresh pages. As much as
// the largest message of the default limit now stays, in one heap: what one
// thread freed serves the next, and what is idle is bounded once. Takes effect
// for threads that start later. docs/adr/0006 has numbers.
void KeepMessageBuffers() {
#ifdef __GLIBC__
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  mallopt(M_TOP_PAD, 1 << 20);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that glibc takes
#endif
}

// Descriptors 0 to 2 lead somewhere. What is opened next would take the number
// of one that is closed, and a client would be sent what is written to stderr.
void OpenStandardStreams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", O_RDWR);
  }
}

// Blocked in every thread, so that only sigwait sees them.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// Waits for a signal and drains; a second signal cuts the drain short.
int ServeUntilSignal(Server& server, const sigset_t& signals) {
  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("signal {}: stopping", signal);
  std::atomic<bool> drained = false;
  std::atomic<bool> aborted = false;
  std::thread second([&] {
    int again = 0;
    sigwait(&signals, &again);
    if (drained) return;
    spdlog::warn("signal {} again: cancelling", again);
    aborted = true;
    server.Abort();
  });
  server.Drain();
  drained = true;
  // It waits for this signal, which is blocked everywhere: nothing is killed.
  // NOLINTNEXTLINE(bugprone-bad-signal-to-kill-thread)
  pthread_kill(second.native_handle(), SIGTERM);
  second.join();
  spdlog::info("stopped");
  return aborted ? EXIT_FAILURE : EXIT_SUCCESS;
}

int Serve(const ServerConfig& config, const sigset_t& signals) {
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(config);
  if (!server.ok()) {
    spdlog::error("{}", std::string(server.status().message()));
    return EXIT_FAILURE;
  }
  return ServeUntilSignal(**server, signals);
}

}  // namespace

int main(int argc, char** argv) {
  KeepMessageBuffers();
  OpenStandardStreams();
  // Debian builds Abseil with its assertions: each lock of gRPC's then looks
  // for cycles among all that are held, some microseconds in every call.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // Whoever reads the log may go away, and its file may reach a limit of size.
  // Neither is a reason to stop serving.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  const sigset_t signals = BlockStopSignals();
  const attnd::server::Environment environment =
      attnd::server::EnvironmentOf(environ);
  const absl::StatusOr<CommandLine> line =
      attnd::server::ParseConfig({argv + 1, argv + argc}, environment);
  if (!line.ok()) {
    std::fprintf(stderr, "attnd: %s\n",
                 std::string(line.status().message()).c_str());
    return EXIT_FAILURE;
  }
  if (line->answer) {
    std::fputs(line->answer->c_str(), stdout);
    return EXIT_SUCCESS;
  }
  const auto sink = std::make_shared<LogSink>(STDERR_FILENO);
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("attnd", sink));
  spdlog::set_level(spdlog::level::from_str(line->config.log_level));
  attnd::server::TakeLibraryLogs();
  for (const std::string& name : attnd::server::UnknownVariables(environment)) {
    spdlog::warn("{} names no option and is ignored (attnd --help shows all)",
                 name);
  }
  const int exit_code = Serve(line->config, signals);
  attnd::server::DropLibraryLogs();
  sink->Close();
  return exit_code;
}
