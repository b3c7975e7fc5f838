#include "client/attnctl/session.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/checked_math.h"
#include "core/printable.h"

namespace attnd::attnctl {
namespace {

// Returns `text` with the names of attnctl's flags in place of those of
// client::ClientOptions. Names within paths stay as they are, because no blank
// or parenthesis comes before them.
std::string WithFlagNames(absl::string_view text) {
  constexpr std::array<std::pair<absl::string_view, absl::string_view>, 7>
      kNames = {{{"tls.ca", "--tls-ca"},
                 {"tls.cert", "--tls-cert"},
                 {"tls.key", "--tls-key"},
                 {"tls.server_name", "--tls-server-name"},
                 {"token_file", "--token-file"},
                 {"allow_plaintext_token", "--allow-plaintext-token"},
                 {"tls", "--tls"}}};
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const bool begins_word =
        at == 0 || text[at - 1] == ' ' || text[at - 1] == '(';
    const auto* const name =
        std::find_if(kNames.begin(), kNames.end(), [&](const auto& item) {
          const absl::string_view rest = text.substr(at);
          return begins_word && absl::StartsWith(rest, item.first) &&
                 (rest.size() == item.first.size() ||
                  absl::StrContains(" ,:;)",
                                    rest.substr(item.first.size(), 1)));
        });
    if (name == kNames.end()) {
      result += text[at++];
    } else {
      absl::StrAppend(&result, name->second);
      at += name->first.size();
    }
  }
  return result;
}

std::string CodeAndMessage(const absl::Status& status) {
  return absl::StrCat(absl::StatusCodeToString(status.code()), ": ",
                      WithFlagNames(status.message()));
}

// Returns whether the client library has refused the call before it sent
// anything, because an argument is wrong.
bool IsUsageError(const absl::Status& status,
                  const client::ErrorDetails& details) {
  return absl::IsInvalidArgument(status) && details.domain == "attnd.client";
}

}  // namespace

void Screen::Print(absl::string_view line) { *out_ << Printable(line) << "\n"; }

void Screen::PrintJson(const Json& json) {
  // A server may send text that is not UTF-8. `replace` makes dump() replace it
  // instead of throwing. dump() escapes everything except printable ASCII, so
  // Printable() is not necessary.
  *out_ << json.dump(2, ' ', /*ensure_ascii=*/true,
                     Json::error_handler_t::replace)
        << "\n";
}

void Screen::PrintJsonLine(const Json& json) {
  *out_ << json.dump(-1, ' ', /*ensure_ascii=*/true,
                     Json::error_handler_t::replace)
        << "\n";
}

absl::Status Screen::Flush() {
  errno = 0;
  if (flushed_.ok() && !standard_output_.flush()) {
    flushed_ = absl::ErrnoToStatus(errno != 0 ? errno : EIO, "cannot write");
  }
  return flushed_;
}

void Screen::PrintError(absl::string_view line) {
  const std::lock_guard lock(err_mutex_);
  err_ << Printable(line) << "\n" << std::flush;
}

void Screen::Redraw(absl::string_view line) {
  const std::lock_guard lock(err_mutex_);
  err_ << "\r\033[K" << Printable(line) << std::flush;
}

void Screen::EnterAlternateScreen() {
  standard_output_ << "\033[?1049h\033[?25l"
                   << std::flush;  // also hides the cursor
}

void Screen::LeaveAlternateScreen() {
  standard_output_ << "\033[?25h\033[?1049l" << std::flush;
}

void Screen::Draw(const std::vector<std::string>& lines) {
  // Lines are overwritten and then cleared to their ends. If the screen were
  // cleared first, it would flicker.
  standard_output_ << "\033[H";
  for (size_t i = 0; i < lines.size(); ++i) {
    standard_output_ << (i == 0 ? "" : "\r\n") << Printable(lines[i])
                     << "\033[K";
  }
  standard_output_ << "\033[J" << std::flush;
}

client::AttentionClient Session::Connect(absl::Duration deadline,
                                         const client::RetryPolicy& retry,
                                         bool only_healthy) {
  if (deadline_seconds) {
    deadline = *deadline_seconds > 0 ? absl::Seconds(*deadline_seconds)
                                     : absl::InfiniteDuration();
  }
  std::string until = "it succeeds, because --deadline sets no limit";
  if (retry.max_attempts > 0) {
    until = absl::StrCat("it has failed ", retry.max_attempts,
                         " times, because --deadline is not set");
  } else if (deadline != absl::InfiniteDuration()) {
    until = absl::StrFormat("the deadline of %g s has passed",
                            absl::ToDoubleSeconds(deadline));
  }
  const auto report_retry = [this, until](const absl::Status& failure) {
    if (std::exchange(reported_retry, true)) return;
    screen.PrintError(absl::StrCat("attnctl: ", CodeAndMessage(failure),
                                   "; trying again until ", until,
                                   " (Ctrl-C stops)"));
  };
  return client::AttentionClient(
      {.target = server,
       .deadline = deadline,
       .max_message_bytes = max_message_bytes,
       .retry = retry,
       .tls = UsesTls() ? std::optional(tls) : std::nullopt,
       .token_file = token_file,
       .allow_plaintext_token = allow_plaintext_token,
       .only_healthy = only_healthy,
       .on_retry = report_retry});
}

bool Session::UsesTls() const {
  return use_tls || !tls.ca.empty() || !tls.cert.empty() || !tls.key.empty() ||
         !tls.server_name.empty();
}

ExitCode Session::CallError(const absl::Status& status) {
  screen.PrintError(absl::StrCat("attnctl: ", CodeAndMessage(status)));
  const client::ErrorDetails details = client::DetailsOf(status);
  if (!details.reason.empty()) {
    screen.PrintError(
        absl::StrCat("  reason: ", details.reason, " (", details.domain, ")"));
  }
  for (const client::FieldViolation& violation : details.field_violations) {
    std::string line = absl::StrCat(
        "  field:  ", violation.field.empty() ? "(the whole message)"
                                              : WithFlagNames(violation.field));
    // Usually, the message already contains the description.
    if (!absl::StrContains(status.message(), violation.description)) {
      absl::StrAppend(&line, ": ", violation.description);
    }
    screen.PrintError(line);
  }
  if (details.retry_delay) {
    screen.PrintError(absl::StrCat("  retry:  after ",
                                   absl::FormatDuration(*details.retry_delay)));
  }
  if (absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status)) {
    screen.PrintError(token_file.empty()
                          ? "  token:  none; --token-file=FILE sends one"
                          : absl::StrCat("  token:  from ", token_file));
  }
  if (absl::IsDeadlineExceeded(status)) {
    screen.PrintError(
        "  time:   --deadline=SECONDS gives the call more; 0 sets no limit");
  }
  if (absl::IsUnavailable(status) && UsesTls() &&
      absl::StartsWith(server, "unix:")) {
    screen.PrintError(
        "  tls:    turned on by --tls or a flag that begins with --tls-, or by "
        "the variable of one (ATTNCTL_TLS...), but attnd has no TLS on unix "
        "sockets");
  }
  screen.PrintError(absl::StrCat("  server: ", server));
  if (absl::IsUnavailable(status)) return kUnavailable;
  return IsUsageError(status, details) ? kUsage : kCallFailed;
}

ExitCode Session::FileError(const absl::Status& status) {
  screen.PrintError(absl::StrCat("attnctl: ", status.message()));
  return kFileError;
}

void Session::PrintRows(const std::vector<Row>& rows) {
  size_t width = 0;
  for (const Row& row : rows) width = std::max(width, row.first.size());
  for (const auto& [label, value] : rows) {
    screen.Print(
        absl::StrCat(label, std::string(width - label.size() + 2, ' '), value));
  }
}

std::string FormatBytesShort(int64_t bytes) {
  static constexpr std::array<const char*, 6> kUnits = {"KiB", "MiB", "GiB",
                                                        "TiB", "PiB", "EiB"};
  if (bytes == kMaxInt64) return "more than 8 EiB";
  if (std::abs(bytes) < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string FormatUptime(absl::Duration uptime) {
  const int64_t seconds = absl::ToInt64Seconds(uptime);
  const int64_t days = seconds / 86'400;
  return absl::StrFormat("%s%02d:%02d:%02d",
                         days > 0 ? absl::StrCat(days, " d ") : "",
                         seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
}

std::string FormatBytes(int64_t bytes) {
  if (std::abs(bytes) < 1024 || bytes == kMaxInt64) {
    return FormatBytesShort(bytes);
  }
  return absl::StrCat(FormatBytesShort(bytes), " (", bytes, ")");
}

}  // namespace attnd::attnctl
