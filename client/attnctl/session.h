// What every subcommand shares: the global flags, where text goes, and how an
// error looks. Knows no subcommand.
#ifndef ATTND_CLIENT_ATTNCTL_SESSION_H_
#define ATTND_CLIENT_ATTNCTL_SESSION_H_

#include <cstdint>
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

// For --json: keys in the order in which they were added.
using Json = nlohmann::ordered_json;

// Prints everything that attnctl prints, except help and errors in its
// arguments. Each line is made Printable here, because lines repeat what
// servers and files say.
class Screen {
 public:
  // Results go to `out`, errors and progress to `err`.
  Screen(std::ostream& out, std::ostream& err, bool err_is_terminal)
      : out_(&out), err_(err), err_is_terminal_(err_is_terminal) {}

  // From now on results go to `err`, because `out` carries a file.
  void PrintResultsToErr() { out_ = &err_; }

  void Print(absl::string_view line);
  // Prints `json` over several lines, which Print would join to one.
  void PrintJson(const Json& json);
  void PrintError(absl::string_view line);

  bool err_is_terminal() const { return err_is_terminal_; }
  // Replaces the line that was drawn before. Only for a terminal.
  void Redraw(absl::string_view line);

 private:
  std::ostream* out_;
  std::ostream& err_;
  const bool err_is_terminal_;
};

struct Session {
  Screen screen;

  std::string server = client::ClientOptions().target;
  std::optional<double> deadline_seconds =
      {};  // 0 = none; unset = the command's
  int64_t max_message_bytes = client::ClientOptions().max_message_bytes;

  ExitCode exit_code = kOk;  // what the subcommand that ran answered
  bool said_retry = false;   // whether the user was told of a retry

  // Makes a client from the global flags. `deadline` counts where --deadline
  // was not given. Before the first retry a line on standard error says so.
  // This session must outlive the client.
  client::AttentionClient Connect(
      absl::Duration deadline = client::ClientOptions().deadline,
      const client::RetryPolicy& retry = {});

  // Prints a failed call: code, message, reason, fields.
  ExitCode CallError(const absl::Status& status);

  // Prints a file that could not be read or written.
  ExitCode FileError(const absl::Status& status);

  // Prints labels and values in two columns.
  using Row = std::pair<std::string, std::string>;
  void PrintRows(const std::vector<Row>& rows);
};

// "1.5 MiB (1572864)"; without the parentheses below 1 KiB.
std::string FormatBytes(int64_t bytes);

// "1.5 MiB".
std::string FormatBytesShort(int64_t bytes);

// "[12, 331, 32]".
std::string FormatShape(const std::vector<int64_t>& shape);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_SESSION_H_
