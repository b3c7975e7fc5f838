// attnd: options in, a server up, signals to a drain. Nothing else.
#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "server/process/library_logs.h"
#include "server/process/log_sink.h"
#include "server/process/stop_signals.h"
#include "server/server.h"
#include "server/server_config.h"
#include "spdlog/spdlog.h"

namespace {

using attnd::server::CommandLine;
using attnd::server::Environment;
using attnd::server::LogSink;
using attnd::server::Server;
using attnd::server::ServerConfig;
using attnd::server::StopSignals;

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

// Opens those of the descriptors 0 to 2 that are closed. Otherwise the next
// socket would get such a number, and a client would be sent the log.
void OpenStandardStreams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", O_RDWR);
  }
}

int Serve(const ServerConfig& config) {
  StopSignals signals;
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(config);
  if (!server.ok()) {
    spdlog::error("{}", std::string(server.status().message()));
    return EXIT_FAILURE;
  }
  signals.Wait([&server] { (*server)->Abort(); });
  (*server)->Drain();
  const bool aborted = signals.End();
  spdlog::info("stopped");
  return aborted ? EXIT_FAILURE : EXIT_SUCCESS;
}

int ServeWithLog(const ServerConfig& config, const Environment& environment) {
  StopSignals::Block();
  const auto sink = std::make_shared<LogSink>(STDERR_FILENO);
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("attnd", sink));
  spdlog::set_level(spdlog::level::from_str(config.log_level));
  attnd::server::TakeLibraryLogs();
  for (const std::string& name : attnd::server::UnknownVariables(environment)) {
    // ATTND_PORT is what many people try first.
    spdlog::warn("{} names no option and is ignored; {}", name,
                 absl::EndsWith(name, "_PORT")
                     ? "the port is part of ATTND_LISTEN, as in "
                       "ATTND_LISTEN=127.0.0.1:50051"
                     : "attnd --help shows every option");
  }
  const int exit_code = Serve(config);
  attnd::server::DropLibraryLogs();
  sink->Close();
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  KeepMessageBuffers();
  OpenStandardStreams();
  // Debian builds Abseil with its assertions: each lock of gRPC's then looks
  // for cycles among all that are held, some microseconds in every call.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // The reader of the log may go away, and its file may reach a size limit.
  // Neither is a reason to stop serving.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  // No signal is blocked yet, so a signal ends a process that waits for the
  // file that --config names.
  const Environment environment = attnd::server::EnvironmentOf(environ);
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
  try {
    return ServeWithLog(line->config, environment);
  } catch (const std::system_error& error) {
    std::fprintf(stderr, "attnd: the system cannot start another thread (%s)\n",
                 error.what());
    return EXIT_FAILURE;
  }
}
