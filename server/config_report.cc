#include "server/config_report.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "core/machine.h"
#include "cost/memory_shares.h"
#include "server/access/access_control.h"
#include "server/connections/acceptor.h"
#include "server/connections/listen_address.h"
#include "server/connections/listener.h"
#include "server/shared_memory/shm_socket.h"
#include "server/version.h"

namespace attnd::server {
namespace {

// Collects what the checks below find.
class Findings {
 public:
  void Check(const absl::Status& status) {
    if (!status.ok()) found_.errors.emplace_back(status.message());
  }

  void Warn(std::string warning) {
    found_.warnings.push_back(std::move(warning));
  }

  // Checks that `option` names no address that another option has named, or
  // that a wildcard includes. A port of 0 is always another one.
  void CheckOnlyUse(const std::string& option, const ListenAddress& address) {
    if (!address.is_unix() && address.port == 0) return;
    for (const auto& [other, user] : used_) {
      const bool equal = other.Text() == address.Text();
      const bool included = !address.is_unix() && !other.is_unix() &&
                            other.port == address.port &&
                            (other.is_wildcard() || address.is_wildcard());
      if (!equal && !included) continue;
      Check(absl::InvalidArgumentError(absl::StrCat(
          option, ": ", address.Text(),
          equal ? " is also an address of "
                : absl::StrCat(" has the same port as ", other.Text(), " of "),
          user, ": choose another one")));
      return;
    }
    used_.emplace_back(address, option);
  }

  ConfigFindings Take() { return std::move(found_); }

 private:
  ConfigFindings found_;
  // The addresses so far, with their options.
  std::vector<std::pair<ListenAddress, std::string>> used_;
};

void CheckAddresses(const ServerConfig& config, Findings& findings) {
  constexpr char kListen[] = "--listen";
  constexpr char kAdminListen[] = "--admin-listen";
  for (const std::string& text : config.listen) {
    const absl::StatusOr<ListenAddress> address = ListenAddress::Parse(text);
    if (!address.ok()) {
      findings.Check(address.status());
      continue;
    }
    findings.CheckOnlyUse(kListen, *address);
    if (address->is_unix()) {
      findings.Check(UnixSocketGuard::Check(address->unix_path, kListen));
      continue;
    }
    const absl::StatusOr<bool> only_loopback =
        Listener::CheckTcp(*address, kListen);
    findings.Check(only_loopback.status());
    const std::string warning =
        only_loopback.value_or(true)
            ? ""
            : ExposureWarning(address->Text(), config.access);
    if (!warning.empty()) findings.Warn(absl::StrCat("--listen: ", warning));
  }
  if (!config.admin_listen.empty()) {
    const absl::StatusOr<ListenAddress> address =
        ListenAddress::ParseTcp(config.admin_listen, kAdminListen);
    findings.Check(address.status());
    if (address.ok()) {
      findings.CheckOnlyUse(kAdminListen, *address);
      findings.Check(Listener::CheckTcp(*address, kAdminListen).status());
    }
  }
  if (!config.shm_socket.empty()) {
    findings.CheckOnlyUse(
        "--shm-socket",
        {.host = "", .port = 0, .unix_path = config.shm_socket});
    findings.Check(ShmSocket::CheckPath(config.shm_socket));
  }
}

void CheckMachine(const ServerConfig& config, Findings& findings) {
  const MemoryShares shares = SharesOf(config);
  findings.Check(
      MaxConnections(config, shares, RaiseDescriptorLimit()).status());
  const int64_t available = AvailableMemoryBytes();
  if (shares.total_bytes() > available) {
    findings.Warn(absl::StrCat(
        "--memory-budget-bytes: the budget of ", shares.budget_bytes,
        " bytes and what the server needs beside it are ", shares.total_bytes(),
        " bytes, but the process can have only ", available,
        ": the kernel may kill the server"));
  }
  if (config.max_message_bytes > shares.budget_bytes) {
    findings.Warn(absl::StrCat(
        "--max-message-bytes: a message of ", config.max_message_bytes,
        " bytes never fits into the memory budget of ", shares.budget_bytes,
        " bytes: such a call is always refused"));
  }
  if (config.threads > AvailableThreads()) {
    findings.Warn(absl::StrCat("--threads: ", config.threads, " threads share ",
                               AvailableThreads(),
                               " processors: calls do not become faster"));
  }
}

// What the options that choose a value themselves choose on this machine.
std::map<std::string, std::string> Chosen(const ServerConfig& config) {
  const MemoryShares shares = SharesOf(config);
  std::map<std::string, std::string> chosen;
  if (config.threads == 0) {
    chosen["threads"] = absl::StrCat(AvailableThreads());
  }
  if (config.memory_budget_bytes == 0) {
    chosen["memory-budget-bytes"] = absl::StrCat(shares.budget_bytes);
  }
  if (config.max_connections == 0) {
    chosen["max-connections"] = absl::StrCat(DefaultConnections(
        shares, RaiseDescriptorLimit(), !config.access.tls.cert.empty()));
  }
  if (config.shm_quota_bytes == 0) {
    chosen["shm-quota-bytes"] = absl::StrCat(shares.budget_bytes);
  }
  return chosen;
}

// Returns the value as TOML writes it.
absl::StatusOr<std::string> Quoted(const std::string& option,
                                   const std::string& value) {
  int64_t whole = 0;
  double number = 0;
  if ((absl::SimpleAtoi(value, &whole) && absl::StrCat(whole) == value) ||
      (absl::SimpleAtod(value, &number) && std::isfinite(number) &&
       absl::StrCat(number) == value)) {
    return value;
  }
  const bool is_plain = std::none_of(value.begin(), value.end(), [](char c) {
    // CLI11 takes a # as the begin of a comment, in a text too.
    return static_cast<unsigned char>(c) < ' ' || c == 0x7f || c == '#';
  });
  // TOML reads escapes in "..." but not in '...'.
  if (is_plain && value.find_first_of("\"\\") == std::string::npos) {
    return absl::StrCat("\"", value, "\"");
  }
  if (is_plain && !absl::StrContains(value, '\'')) {
    return absl::StrCat("'", value, "'");
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--", option,
      ": --print-config cannot write this value into a file, because it has a "
      "#, a line break or another control character, or both kinds of quotes"));
}

absl::StatusOr<std::string> ValueOf(const Setting& setting) {
  std::vector<std::string> values;
  for (const std::string& value : setting.values) {
    ATTND_ASSIGN_OR_RETURN(std::string quoted, Quoted(setting.option, value));
    values.push_back(std::move(quoted));
  }
  const std::string joined = absl::StrJoin(values, ", ");
  return setting.is_list ? absl::StrCat("[", joined, "]") : joined;
}

}  // namespace

ConfigFindings CheckConfig(const ServerConfig& config) {
  Findings findings;
  CheckAddresses(config, findings);
  if (!config.address_file.empty()) {
    findings.Check(AddressFile::Check(config.address_file));
  }
  findings.Check(AccessControl::Start(config.access).status());
  CheckMachine(config, findings);
  return findings.Take();
}

absl::StatusOr<std::string> PrintConfig(const CommandLine& line) {
  const std::map<std::string, std::string> chosen = Chosen(line.config);
  std::string text = absl::StrCat("# The options of attnd ", kVersion,
                                  ", as a file for --config.\n");
  for (const Setting& setting : line.settings) {
    absl::StrAppend(&text, "\n# ", setting.source);
    const auto choice = chosen.find(setting.option);
    if (choice != chosen.end()) {
      absl::StrAppend(&text, "; on this machine ", choice->second);
    }
    ATTND_ASSIGN_OR_RETURN(const std::string value, ValueOf(setting));
    // A file cannot set a list to an empty one.
    absl::StrAppend(&text, "\n", setting.values.empty() ? "# " : "",
                    setting.option, " = ", value, "\n");
  }
  return text;
}

}  // namespace attnd::server
