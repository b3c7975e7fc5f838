#include "client/attnctl/attnctl.h"

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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

// Adds the flag that the environment variable ATTND_SERVER stands for, unless
// the user gave the flag. CLI11 can read variables too, but since version 2.4
// it ignores those whose value its checks refuse.
std::vector<std::string> WithServerOfEnvironment(
    std::vector<std::string> arguments) {
  const char* const server = std::getenv("ATTND_SERVER");
  if (server == nullptr || *server == '\0' ||
      std::any_of(arguments.begin(), arguments.end(),
                  [](const std::string& argument) {
                    return argument == "--server" ||
                           absl::StartsWith(argument, "--server=");
                  })) {
    return arguments;
  }
  arguments.insert(arguments.begin(), absl::StrCat("--server=", server));
  return arguments;
}

void AddGlobalFlags(CLI::App& app, Session& session) {
  app.add_option("--server", session.server,
                 "the server's address: host:port or unix:PATH. Without this "
                 "flag, the environment variable ATTND_SERVER sets it")
      ->capture_default_str()
      ->type_name("ADDR")
      ->check(ServerAddressError);
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
        WithEmptyValuesApart(WithServerOfEnvironment(arguments));
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
