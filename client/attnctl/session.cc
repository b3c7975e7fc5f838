#include "client/attnctl/session.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace attnd::attnctl {

client::AttentionClient Session::Connect(absl::Duration deadline) const {
  if (deadline_seconds) {
    deadline = *deadline_seconds > 0 ? absl::Seconds(*deadline_seconds)
                                     : absl::InfiniteDuration();
  }
  return client::AttentionClient({.target = server,
                                  .deadline = deadline,
                                  .max_message_bytes = max_message_bytes});
}

ExitCode Session::CallError(const absl::Status& status) {
  err << "attnctl: " << absl::StatusCodeToString(status.code()) << ": "
      << status.message() << "\n";
  const client::ErrorDetails details = client::DetailsOf(status);
  if (!details.reason.empty()) {
    err << "  reason: " << details.reason << " (" << details.domain << ")\n";
  }
  for (const client::FieldViolation& violation : details.field_violations) {
    err << "  field:  "
        << (violation.field.empty() ? "(the whole message)" : violation.field);
    // Usually the message says it already.
    if (!absl::StrContains(status.message(), violation.description)) {
      err << ": " << violation.description;
    }
    err << "\n";
  }
  if (details.retry_delay) {
    err << "  retry:  after " << absl::FormatDuration(*details.retry_delay)
        << "\n";
  }
  err << "  server: " << server << "\n";
  return status.code() == absl::StatusCode::kUnavailable ? kUnavailable
                                                         : kCallFailed;
}

ExitCode Session::FileError(const absl::Status& status) {
  err << "attnctl: " << status.message() << "\n";
  return kFileError;
}

void Session::PrintRows(const std::vector<Row>& rows) {
  size_t width = 0;
  for (const Row& row : rows) width = std::max(width, row.first.size());
  for (const auto& [label, value] : rows) {
    out << label << std::string(width - label.size() + 2, ' ') << value << "\n";
  }
}

std::string FormatBytesShort(int64_t bytes) {
  static constexpr std::array<const char*, 6> kUnits = {"KiB", "MiB", "GiB",
                                                        "TiB", "PiB", "EiB"};
  if (std::abs(bytes) < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string FormatBytes(int64_t bytes) {
  if (std::abs(bytes) < 1024) return FormatBytesShort(bytes);
  return absl::StrCat(FormatBytesShort(bytes), " (", bytes, ")");
}

std::string FormatShape(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace attnd::attnctl
