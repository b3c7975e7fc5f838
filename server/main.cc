// The program attnd: reads the options, starts a server, and drains it when a
// signal asks for that.
#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/config_report.h"
#include "server/log/log_fields.h"
#include "server/process/library_logs.h"
#include "server/process/log_level.h"
#include "server/process/log_sink.h"
#include "server/process/stop_signals.h"
#include "server/rpc/idle_poller.h"
#include "server/server.h"
#include "server/server_config.h"
#include "spdlog/spdlog.h"

namespace {

using attnd::server::CommandLine;
using attnd::server::Environment;
using attnd::server::IdlePoller;
using attnd::server::LogSink;
using attnd::server::Server;
using attnd::server::ServerConfig;
using attnd::server::StopSignals;

// Makes malloc keep the memory of received messages for the next ones. Affects
// only threads that start later.
//
// gRPC receives a message into blocks of 64 KiB from malloc. By default, glibc
// unmaps freed blocks as soon as 128 KiB at the end of a heap are free, and
// deletes the heaps of threads, so that every message is received into fresh
// pages. With these settings, all threads share one heap, so a thread can use
// what another one freed, and the heap keeps at most 256 MiB at its end, which
// is the largest message by default. docs/adr/0006 has numbers.
void KeepMessageBuffers() {
#ifdef __GLIBC__
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  mallopt(M_TOP_PAD, 1 << 20);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that glibc takes
#endif
}

// Opens those of the descriptors 0 to 2 that are closed. Otherwise a socket
// could get the number of stderr, and the log would be sent to a client.
void OpenStandardStreams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", O_RDWR);
  }
}

// How long gRPC may take to end its threads after the server has closed all
// connections. Sanitizers look for leaks after that, which takes longer.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::chrono::seconds kGrpcTime{120};
#else
constexpr std::chrono::seconds kGrpcTime{1};
#endif

// Ends the process with `exit_code` after kGrpcTime, unless it has ended by
// then. If a client has not read what was sent to it, one of gRPC's threads
// sleeps for up to 10 s, and longer if there are several such clients. gRPC
// waits for that thread at its end, although all calls are over. An
// orchestrator would kill the process meanwhile.
void EndSoon(int exit_code) {
  try {
    std::thread([exit_code] {
      std::this_thread::sleep_for(kGrpcTime);
      spdlog::info("ending the process without waiting for gRPC's threads");
      spdlog::default_logger_raw()->flush();
      std::_Exit(exit_code);
    }).detach();
  } catch (const std::system_error& error) {
    spdlog::warn("the end may take longer, because no thread could start: {}",
                 error.what());
  }
}

int Serve(const ServerConfig& config) {
  StopSignals signals;
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(config);
  if (!server.ok()) {
    spdlog::error("{}", std::string(server.status().message()));
    return EXIT_FAILURE;
  }
  const IdlePoller idle_poller([&server] { return (*server)->connections(); });
  switch (
      signals.Wait({.on_second = [&server] { (*server)->Abort(); },
                    .on_hangup = [&server] { (*server)->ReloadFiles(); }})) {
    case StopSignals::Stop::kAnnounce:
      (*server)->Announce();
      break;
    case StopSignals::Stop::kDrain:
      break;
    case StopSignals::Stop::kAtOnce:
      (*server)->Abort();
      break;
  }
  (*server)->Drain();
  const int exit_code = signals.End() ? EXIT_FAILURE : EXIT_SUCCESS;
  spdlog::info("stopped");
  EndSoon(exit_code);
  return exit_code;
}

// Returns a warning for each variable that a user has probably misspelt.
std::vector<std::string> VariableWarnings(const Environment& environment) {
  std::vector<std::string> warnings;
  for (const std::string& name : attnd::server::UnknownVariables(environment)) {
    warnings.push_back(
        absl::StrCat(name, " names no option and is ignored; ",
                     // Many users try ATTND_PORT first.
                     absl::EndsWith(name, "_PORT")
                         ? "the port is part of ATTND_LISTEN, as in "
                           "ATTND_LISTEN=127.0.0.1:50051"
                         : "attnd --help describes each option"));
  }
  return warnings;
}

void Complain(absl::string_view text) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    std::fprintf(stderr, "attnd: %s\n", std::string(line).c_str());
  }
}

int CheckAndReport(const ServerConfig& config, const Environment& environment) {
  const attnd::server::ConfigFindings found =
      attnd::server::CheckConfig(config);
  for (const std::string& error : found.errors) Complain(error);
  for (const std::string& warning : found.warnings) {
    Complain(absl::StrCat("warning: ", warning));
  }
  for (const std::string& warning : VariableWarnings(environment)) {
    Complain(absl::StrCat("warning: ", warning));
  }
  if (!found.errors.empty()) return EXIT_FAILURE;
  std::fputs("ok\n", stdout);
  return EXIT_SUCCESS;
}

int PrintToStdout(const CommandLine& line) {
  const absl::StatusOr<std::string> text = attnd::server::PrintConfig(line);
  if (!text.ok()) {
    Complain(text.status().message());
    return EXIT_FAILURE;
  }
  std::fputs(text->c_str(), stdout);
  return EXIT_SUCCESS;
}

int ServeWithLog(const ServerConfig& config, const Environment& environment) {
  StopSignals::Block();
  attnd::server::SetLogFormat(config.log_format == "json"
                                  ? attnd::server::LogFormat::kJson
                                  : attnd::server::LogFormat::kText);
  const auto sink = std::make_shared<LogSink>(STDERR_FILENO);
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("attnd", sink));
  attnd::server::SetLogLevel(config.log_level);
  attnd::server::RedirectLibraryLogs();
  for (const std::string& warning : VariableWarnings(environment)) {
    spdlog::warn("{}", warning);
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
  // Debian builds Abseil with assertions. Each lock of gRPC would then look for
  // a deadlock among all locks, which takes some microseconds of every call.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // These signals come if the reader of the log goes away, or if the log's file
  // reaches a size limit. The server goes on in both cases.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  // Signals are not blocked yet, so that they end the process while it waits
  // for the file that --config names, which may be a pipe.
  const Environment environment = attnd::server::EnvironmentOf(environ);
  const absl::StatusOr<CommandLine> line =
      attnd::server::ParseConfig({argv + 1, argv + argc}, environment);
  if (!line.ok()) {
    Complain(line.status().message());
    return EXIT_FAILURE;
  }
  if (line->answer) {
    std::fputs(line->answer->c_str(), stdout);
    return EXIT_SUCCESS;
  }
  switch (line->action) {
    case CommandLine::Action::kCheckConfig:
      return CheckAndReport(line->config, environment);
    case CommandLine::Action::kPrintConfig:
      return PrintToStdout(*line);
    case CommandLine::Action::kServe:
      break;
  }
  try {
    return ServeWithLog(line->config, environment);
  } catch (const std::system_error& error) {
    std::fprintf(stderr, "attnd: the system cannot start another thread (%s)\n",
                 error.what());
    return EXIT_FAILURE;
  }
}
