#include "client/attnctl/attnctl.h"

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/command_line.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/option_flags.h"
#include "client/attnctl/server_address.h"
#include "client/attnctl/session.h"
#include "wire/message_sizes.h"

namespace attnd::attnctl {
namespace {

constexpr char kFooter[] =
    "Every flag above can also follow the command.\n"
    "\n"
    "Examples:\n"
    "  attnctl health && attnctl info\n"
    "      shows what a server can do, if it is serving\n"
    "  attnctl attention -q q.npy -k k.npy -v v.npy -o o.npy\n"
    "      computes attention of three arrays that NumPy saved\n"
    "  attnctl bench --num-vectors=4096\n"
    "      compares flash with naive attention on the server\n"
    "  attnctl estimate --seq-len=16384 --num-q-heads=32 --offline\n"
    "      computes how much memory a call would take, without a server\n"
    "  attnctl COMMAND --help\n"
    "      explains the flags of a command\n"
    "\n";

// Writes what was printed. Returns `exit_code`, or kFileError if that fails.
int Flushed(int exit_code, Session& session) {
  const absl::Status flushed = session.screen.Flush();
  if (flushed.ok()) return exit_code;
  session.screen.PrintError(
      absl::StrCat("attnctl: standard output: ", flushed.message()));
  return exit_code == kOk ? kFileError : exit_code;
}

// The environment variables that stand for flags with a value. Most of them do
// not begin with ATTND_, because those are for the server: in a container,
// attnctl may have the environment of the server.
constexpr struct {
  const char* variable;
  const char* flag;
} kVariables[] = {{"ATTND_SERVER", "--server"},
                  {"ATTNCTL_TLS_CA", "--tls-ca"},
                  {"ATTNCTL_TLS_CERT", "--tls-cert"},
                  {"ATTNCTL_TLS_KEY", "--tls-key"},
                  {"ATTNCTL_TLS_SERVER_NAME", "--tls-server-name"},
                  {"ATTNCTL_TOKEN_FILE", "--token-file"}};

// Adds the flag of each variable that is set, unless the user gave the flag.
// CLI11 can read variables too, but since version 2.4 it ignores those whose
// value its checks refuse.
std::vector<std::string> WithFlagsOfEnvironment(
    std::vector<std::string> arguments) {
  std::vector<std::string> added;
  for (const auto& [variable, flag] : kVariables) {
    const char* const value = std::getenv(variable);
    if (value == nullptr || *value == '\0') continue;
    const std::string prefix = absl::StrCat(flag, "=");
    const auto is_flag = [&, flag = flag](const std::string& argument) {
      return argument == flag || absl::StartsWith(argument, prefix);
    };
    if (std::none_of(arguments.begin(), arguments.end(), is_flag)) {
      added.push_back(absl::StrCat(prefix, value));
    }
  }
  arguments.insert(arguments.begin(), added.begin(), added.end());
  return arguments;
}

// Returns `help` with the variable that stands for `flag`.
std::string WithVariable(const std::string& help, absl::string_view flag) {
  for (const auto& [variable, of_flag] : kVariables) {
    if (flag == of_flag) {
      return absl::StrCat(help,
                          ". Without this flag, the environment variable ",
                          variable, " sets it");
    }
  }
  return help;
}

void AddAccessFlags(CLI::App& app, Session& session) {
  app.add_flag("--tls", session.use_tls,
               "use TLS, and trust the certificates that the system trusts. "
               "Each of the --tls-* flags turns on TLS too")
      ->envname("ATTNCTL_TLS");
  const auto add_file = [&app](const std::string& flag, std::string& path,
                               const char* help) {
    app.add_option(flag, path, WithVariable(help, flag))
        ->type_name("FILE")
        ->check(CLI::ExistingFile);
  };
  add_file("--tls-ca", session.tls.ca,
           "trust the certificates of authorities in this PEM file instead of "
           "those of the system");
  add_file("--tls-cert", session.tls.cert,
           "the certificate of this client with its chain, in PEM, for servers "
           "that ask for one");
  add_file("--tls-key", session.tls.key,
           "the private key of --tls-cert, in PEM");
  app.add_option(
         "--tls-server-name", session.tls.server_name,
         WithVariable("the name in the certificate of the server, if it "
                      "is not the host in --server",
                      "--tls-server-name"))
      ->type_name("NAME");
  add_file("--token-file", session.token_file,
           "send the token in this file with each call. attnctl reads the file "
           "again while it runs");
  app.add_flag("--allow-plaintext-token", session.allow_plaintext_token,
               "send the token without TLS to another host, although everybody "
               "on the way can read it");
}

void AddGlobalFlags(CLI::App& app, Session& session) {
  app.add_option("--server", session.server,
                 WithVariable("the server's address: host, host:port or "
                              "unix:PATH",
                              "--server"))
      ->capture_default_str()
      ->type_name("ADDR")
      ->check(ServerAddressError)
      ->transform(WithDefaultPort);
  AddNumberFlag(app, "--deadline", session.deadline_seconds,
                "how long the call can take; 0 sets no limit. Until then, "
                "attnctl tries again if there is no server or if the server is "
                "busy. info, health and top do not try again. Default: 60; for "
                "health and top 3; for bench no limit")
      ->type_name("SECONDS")
      ->check([](const std::string& text) {
        return absl::StartsWith(text, "-")
                   ? absl::StrCat("expected 0 or more, got ", text)
                   : "";
      });
  AddBytesFlag(app, "--max-message-bytes", session.max_message_bytes,
               "the largest message to send or to receive. Larger calls of "
               "attention, self and cross are sent in chunks of up to 1 MiB; "
               "larger calls of backward fail. With estimate --offline --max, "
               "it is the limit of the server; without --offline, the server "
               "has its own limit, and estimate uses that one",
               kMaxMessageLimitBytes)
      ->default_str(absl::StrCat(session.max_message_bytes));
  AddAccessFlags(app, session);
  app.set_version_flag("--version", "attnctl " ATTND_VERSION);
}

}  // namespace

int RunAttnctl(const std::vector<std::string>& arguments, std::ostream& out,
               std::ostream& err, bool err_is_terminal, bool out_is_terminal) {
  Session session{.screen = Screen(out, err, out_is_terminal, err_is_terminal)};
  CLI::App app(
      "Computes exact attention on an attnd server, and asks a server what it "
      "can do.",
      "attnctl");
  app.fallthrough();  // global flags may follow the command
  app.require_subcommand(1);
  app.footer(absl::StrCat(kFooter, kExitCodesHelp));
  AddGlobalFlags(app, session);
  AddAttentionCommands(app, session);
  AddBackwardCommand(app, session);
  AddBenchCommand(app, session);
  AddEstimateCommand(app, session);
  AddInfoCommand(app, session);
  AddHealthCommand(app, session);
  AddTopCommand(app, session);
  try {
    std::vector<std::string> reversed =
        WithEmptyValuesApart(WithFlagsOfEnvironment(arguments));
    std::reverse(reversed.begin(), reversed.end());  // as CLI11 expects them
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    // CLI11 also throws for --help and --version, and then exit() returns 0.
    return Flushed(app.exit(error, out, err) == 0 ? kOk : kUsage, session);
  } catch (const std::bad_alloc&) {
    session.screen.PrintError(
        "attnctl: there is not enough memory on this machine for the call and "
        "its files");
    return kCallFailed;
  } catch (const std::exception& error) {
    session.screen.PrintError(absl::StrCat("attnctl: ", error.what()));
    return kCallFailed;
  }
  return Flushed(session.exit_code, session);
}

}  // namespace attnd::attnctl
