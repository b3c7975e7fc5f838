// What all subcommands of attnctl use: the values of the global flags, and the
// functions that print results and errors.
#ifndef ATTND_CLIENT_ATTNCTL_SESSION_H_
#define ATTND_CLIENT_ATTNCTL_SESSION_H_

#include <cstdint>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "client/attnctl/exit_codes.h"

namespace attnd::attnctl {

// The JSON that --json prints. Keys stay in the order in which they were added.
using Json = nlohmann::ordered_json;

// Prints all output of attnctl, except help and errors in its arguments, which
// CLI11 prints. Escapes the control characters in each line (core/printable.h),
// because lines can repeat text from servers and files. Only PrintError and
// Redraw may be called by several threads at once.
class Screen {
 public:
  // Prints results to `out`, and errors and progress to `err`. Both streams
  // must outlive this object.
  Screen(std::ostream& out, std::ostream& err, bool out_is_terminal,
         bool err_is_terminal)
      : standard_output_(out),
        err_(err),
        out_is_terminal_(out_is_terminal),
        err_is_terminal_(err_is_terminal) {}

  // Sends all further results to `err`. Call it if `out` receives a file.
  void PrintResultsToErr() { out_ = &err_; }

  void Print(absl::string_view line);
  // Prints `json`, which has several lines. (Print would escape the line ends.)
  void PrintJson(const Json& json);
  // Prints `json` as one line.
  void PrintJsonLine(const Json& json);
  // Prints the text of CsvOf (client/attnctl/sweep.h), which is several lines.
  void PrintCsv(absl::string_view csv) { *out_ << csv; }
  void PrintError(absl::string_view line);
  // Writes what was printed to `out`. Returns the error of the first write that
  // failed, for example because the disk is full.
  absl::Status Flush();

  bool err_is_terminal() const { return err_is_terminal_; }
  // Replaces the line that the previous call of Redraw has drawn. Call it only
  // if `err` is a terminal.
  void Redraw(absl::string_view line);

  bool out_is_terminal() const { return out_is_terminal_; }
  // Switches the terminal to its alternate screen and back to what it showed
  // before. Call these three only if `out` is a terminal.
  void EnterAlternateScreen();
  void LeaveAlternateScreen();
  // Draws `lines` in place of what the alternate screen shows. There must not
  // be more of them than rows, and they must be as short as its columns.
  void Draw(const std::vector<std::string>& lines);

 private:
  std::ostream& standard_output_;
  std::mutex err_mutex_;
  std::ostream& err_;
  std::ostream* out_ = &standard_output_;  // for results
  absl::Status flushed_;
  const bool out_is_terminal_;
  const bool err_is_terminal_;
};

// The state of one run of attnctl.
struct Session {
  Screen screen;

  std::string server = client::ClientOptions().target;
  // The value of --deadline. 0 sets no limit. Unset selects the default of the
  // command.
  std::optional<double> deadline_seconds = {};
  int64_t max_message_bytes = client::ClientOptions().max_message_bytes;
  bool use_tls = false;  // also if a member of `tls` is set
  client::TlsOptions tls = {};
  std::string token_file = {};
  bool allow_plaintext_token = false;

  ExitCode exit_code = kOk;     // of the subcommand that ran
  bool reported_retry = false;  // whether the user was told of a retry

  // Makes a client according to the global flags. `deadline` applies if the
  // user did not set --deadline. Before its first retry, the client prints a
  // line on standard error, for which it uses this session; so the session must
  // outlive the client. `only_healthy` is as in ClientOptions.
  client::AttentionClient Connect(
      absl::Duration deadline = client::ClientOptions().deadline,
      const client::RetryPolicy& retry = {}, bool only_healthy = true);

  // Returns whether one of the flags above turns on TLS.
  bool UsesTls() const;

  // Prints the error of a failed call, with its code, message, reason, fields
  // and the server's address, and with the flags that could be the cause.
  // Returns the exit code for it.
  ExitCode CallError(const absl::Status& status);

  // Prints the error of a file that could not be read or written. Returns
  // kFileError.
  ExitCode FileError(const absl::Status& status);

  // Prints labels and values in two columns.
  using Row = std::pair<std::string, std::string>;
  void PrintRows(const std::vector<Row>& rows);
};

// Formats a number of bytes as "1.5 MiB (1572864)", or as "512 B" below 1 KiB.
// The largest int64 stands for every number that is too large for an int64, so
// it becomes "more than 8 EiB".
std::string FormatBytes(int64_t bytes);

// Formats a number of bytes as "1.5 MiB", or "more than 8 EiB" as above.
std::string FormatBytesShort(int64_t bytes);

// Formats a time since a start as "3 d 04:12:07", or as "04:12:07" below a day.
std::string FormatUptime(absl::Duration uptime);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_SESSION_H_
