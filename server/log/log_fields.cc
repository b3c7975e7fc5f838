#include "server/log/log_fields.h"

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "core/printable.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/sink.h"  // IWYU pragma: keep
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

constexpr size_t kMaxValueBytes = 256;
// The name of the function in messages of LogFields. Its address marks them.
// Without a line of a file, spdlog does not print it.
constexpr char kLogFields[] = "LogFields";

std::atomic<LogFormat> g_format{LogFormat::kText};

bool IsPlain(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::string_view("-_.:/[]%@+,").find(c) != absl::string_view::npos;
  });
}

std::string ValueOf(const LogField& field, LogFormat format) {
  if (const auto* number = std::get_if<int64_t>(&field.value)) {
    return absl::StrCat(*number);
  }
  const absl::string_view text = std::get<absl::string_view>(field.value);
  const absl::string_view cut = text.substr(0, kMaxValueBytes);
  if (format == LogFormat::kText && IsPlain(text) && cut == text) {
    return std::string(text);
  }
  return JsonString(cut == text ? std::string(text) : absl::StrCat(cut, "..."));
}

}  // namespace

void SetLogFormat(LogFormat format) { g_format = format; }
LogFormat GetLogFormat() { return g_format; }

std::string JsonString(absl::string_view text) {
  // Printable leaves no control characters, so these are all that JSON escapes.
  return absl::StrCat(
      "\"",
      absl::StrReplaceAll(Printable(text), {{"\"", "\\\""}, {"\\", "\\\\"}}),
      "\"");
}

std::string Counted(int64_t count, absl::string_view noun) {
  return absl::StrCat(count, " ", noun, count == 1 ? "" : "s");
}

void LogFields(spdlog::level::level_enum level, absl::string_view message,
               const std::vector<LogField>& fields) {
  spdlog::logger* const logger = spdlog::default_logger_raw();
  if (!logger->should_log(level)) return;
  const LogFormat format = GetLogFormat();
  const bool json = format == LogFormat::kJson;
  std::string line = json ? absl::StrCat("\"message\":", JsonString(message))
                          : std::string(message);
  for (const LogField& field : fields) {
    absl::StrAppend(&line, json ? ",\"" : " ", field.name, json ? "\":" : "=",
                    ValueOf(field, format));
  }
  const spdlog::details::log_msg rendered(
      spdlog::source_loc("", 0, kLogFields), logger->name(), level,
      spdlog::string_view_t(line.data(), line.size()));
  for (const spdlog::sink_ptr& sink : logger->sinks()) {
    if (sink->should_log(level)) sink->log(rendered);
  }
}

bool IsFromLogFields(const spdlog::details::log_msg& message) {
  return message.source.funcname == kLogFields;
}

}  // namespace attnd::server
