#include "server/process/library_logs.h"

#include <string>
#include <string_view>
#include <utility>

#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

constexpr size_t kMaxTextBytes = 200;
constexpr int kLinesPerSecond = 10;

void Log(std::string_view library, spdlog::level::level_enum level,
         std::string_view file, int line, std::string_view text) {
  if (!spdlog::should_log(level)) return;
  static LineLimit limit(kLinesPerSecond);
  const std::optional<int64_t> left_out =
      limit.Admit(std::chrono::steady_clock::now());
  if (!left_out) return;
  if (*left_out > 0) {
    spdlog::warn(
        "{} lines of gRPC and protobuf were left out, because attnd logs at "
        "most {} a second",
        *left_out, kLinesPerSecond);
  }
  file.remove_prefix(file.rfind('/') + 1);
  const bool cut = text.size() > kMaxTextBytes;
  spdlog::log(level, "{} {}:{}: {}{}", library, file, line,
              text.substr(0, kMaxTextBytes), cut ? "..." : "");
}

// Logs the last line before the process aborts, and waits until it is written.
void LogLast(std::string_view library, std::string_view file, int line,
             std::string_view text) {
  spdlog::critical("{} {}:{}: {}", library, file, line, text);
  spdlog::default_logger_raw()->flush();
}

void LogOfGrpc(gpr_log_func_args* args) {
  const std::string_view text = args->message;
  // gpr_assertion_failed logs this and then aborts.
  if (text.starts_with("assertion failed: ")) {
    LogLast("gRPC", args->file, args->line, text);
    return;
  }
  // Whoever can reach the port can cause these lines, with a handshake that
  // fails. The server's own certificate and key were checked before gRPC got
  // them (CheckTlsFiles).
  const bool is_of_client =
      std::string_view(args->file).ends_with("/ssl_transport_security.cc");
  const spdlog::level::level_enum level =
      args->severity == GPR_LOG_SEVERITY_ERROR
          ? (is_of_client ? spdlog::level::info : spdlog::level::err)
      : args->severity == GPR_LOG_SEVERITY_INFO ? spdlog::level::info
                                                : spdlog::level::debug;
  Log("gRPC", level, args->file, args->line, text);
}

void LogOfProtobuf(google::protobuf::LogLevel severity, const char* file,
                   int line, const std::string& text) {
  switch (severity) {
    case google::protobuf::LOGLEVEL_FATAL:
      LogLast("protobuf", file, line, text);
      return;
    case google::protobuf::LOGLEVEL_ERROR:
      Log("protobuf", spdlog::level::err, file, line, text);
      return;
    case google::protobuf::LOGLEVEL_WARNING:
      Log("protobuf", spdlog::level::warn, file, line, text);
      return;
    case google::protobuf::LOGLEVEL_INFO:
      Log("protobuf", spdlog::level::info, file, line, text);
      return;
  }
}

}  // namespace

void RedirectLibraryLogs() {
  gpr_set_log_function(LogOfGrpc);
  google::protobuf::SetLogHandler(LogOfProtobuf);
}

void DropLibraryLogs() {
  gpr_set_log_function([](gpr_log_func_args*) {});
  google::protobuf::SetLogHandler(nullptr);
}

std::optional<int64_t> LineLimit::Admit(
    std::chrono::steady_clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (now - second_begin_ >= std::chrono::seconds(1)) {
    second_begin_ = now;
    lines_ = 0;
  }
  if (lines_ >= lines_per_second_) {
    ++left_out_;
    return std::nullopt;
  }
  ++lines_;
  return std::exchange(left_out_, 0);
}

}  // namespace attnd::server
