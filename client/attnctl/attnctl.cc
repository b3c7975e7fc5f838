#include "client/attnctl/attnctl.h"

#include <cerrno>
#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/option_flags.h"
#include "client/attnctl/session.h"

namespace attnd::attnctl {
namespace {

constexpr char kFooter[] =
    "Examples:\n"
    "  attnctl health && attnctl info\n"
    "  attnctl attention -q q.npy -k k.npy -v v.npy -o o.npy\n"
    "  attnctl bench --num-vectors=4096\n"
    "  attnctl estimate --seq-len=16384 --num-q-heads=32 --offline\n"
    "  attnctl COMMAND --help\n"
    "\n";

// Writes out what is still in the buffer, which can fail: the disk may be full.
int Flushed(int exit_code, std::ostream& out, Session& session) {
  errno = 0;
  if (out.flush()) return exit_code;
  const int error = errno;
  session.screen.PrintError(
      absl::StrCat("attnctl: standard output: ",
                   absl::ErrnoToStatus(error, "cannot write").message()));
  return exit_code == kOk ? kFileError : exit_code;
}

void AddGlobalFlags(CLI::App& app, Session& session) {
  app.add_option("--server", session.server,
                 "host:port or unix:PATH; without this flag, what ATTND_SERVER "
                 "in the environment says")
      ->capture_default_str()
      ->envname("ATTND_SERVER")
      ->type_name("ADDR");
  AddNumberFlag(app, "--deadline", session.deadline_seconds,
                "how long the call may take; 0 = no limit. Until then, attnctl "
                "tries again if there is no server or it is busy, except for "
                "info and health. Default: 60, health 3, bench no limit")
      ->type_name("SECONDS")
      ->check([](const std::string& text) {
        return absl::StartsWith(text, "-")
                   ? absl::StrCat("expected 0 or more, got ", text)
                   : "";
      });
  AddNumberFlag(app, "--max-message-bytes", session.max_message_bytes,
                "the largest message to send or to receive; attention that "
                "does not fit is streamed, in chunks of up to 1 MiB")
      ->default_str(absl::StrCat(session.max_message_bytes))
      ->type_name("BYTES")
      ->check(CLI::Range(int64_t{1}, int64_t{2147483647}));
  app.set_version_flag("--version", "attnctl " ATTND_VERSION);
}

}  // namespace

int RunAttnctl(const std::vector<std::string>& arguments, std::ostream& out,
               std::ostream& err, bool err_is_terminal) {
  Session session{.screen = Screen(out, err, err_is_terminal)};
  CLI::App app("Exact attention on an attnd server.", "attnctl");
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
  try {
    // CLI11 takes a vector from its end.
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& error) {
    // Asked-for help and version end here too, with 0.
    return Flushed(app.exit(error, out, err) == 0 ? kOk : kUsage, out, session);
  } catch (const std::bad_alloc&) {
    session.screen.PrintError(
        "attnctl: there is not enough memory for the call and its files");
    return kCallFailed;
  } catch (const std::exception& error) {
    session.screen.PrintError(absl::StrCat("attnctl: ", error.what()));
    return kCallFailed;
  }
  return Flushed(session.exit_code, out, session);
}

}  // namespace attnd::attnctl
