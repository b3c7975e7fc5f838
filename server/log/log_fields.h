// Lines of the log that programs can read: their facts are fields with names.
// Also has the format of all lines of the log.
#ifndef ATTND_SERVER_LOG_LOG_FIELDS_H_
#define ATTND_SERVER_LOG_LOG_FIELDS_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "spdlog/common.h"
#include "spdlog/details/log_msg.h"

namespace attnd::server {

enum class LogFormat {
  kText,  // for people
  kJson   // one object of JSON (RFC 8259) per line
};

// Sets the format of the log of this process, which is kText before. Call it
// before anything is logged.
void SetLogFormat(LogFormat format);
LogFormat GetLogFormat();

// Returns `count` and the noun in its right form: "1 call" or "2 calls".
std::string Counted(int64_t count, absl::string_view noun);

struct LogField {
  absl::string_view name;  // letters and underscores
  // A text may have any bytes. At most 256 of them are logged.
  std::variant<absl::string_view, int64_t> value;
};

// Logs `message` and the fields to spdlog's default logger, which decides by
// its level whether anything is written. `message` must be printable. The text
// format is "message name=value name=value", where a value that contains
// anything but letters, digits and the characters of addresses and paths is
// quoted as in JSON. In JSON, each field is a member of the line's object.
void LogFields(spdlog::level::level_enum level, absl::string_view message,
               const std::vector<LogField>& fields);

// Whether `message` comes from LogFields. Its payload is then complete: the
// text of the line, or the members of its object. A sink writes it unchanged.
bool IsFromLogFields(const spdlog::details::log_msg& message);

// Returns `text` as a string of JSON, with its quotes. Bytes that are not
// printable become \xNN (core/printable.h).
std::string JsonString(absl::string_view text);

}  // namespace attnd::server

#endif  // ATTND_SERVER_LOG_LOG_FIELDS_H_
