#include "client/attnctl/attnctl.h"

#include <exception>

#include "absl/strings/str_cat.h"
#include "client/attnctl/commands.h"
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

void AddGlobalFlags(CLI::App& app, Session& session) {
  app.add_option("--server", session.server,
                 "host:port or unix:PATH; the environment's ATTND_SERVER "
                 "stands in where it is not given")
      ->capture_default_str()
      ->envname("ATTND_SERVER")
      ->type_name("ADDR");
  app.add_option("--deadline", session.deadline_seconds,
                 "of the call; 0 = none. Default 60 (health 3, bench none)")
      ->type_name("SECONDS")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--max-message-bytes", session.max_message_bytes,
                 "the largest message each way; larger attention is streamed")
      ->capture_default_str()
      ->type_name("BYTES")
      ->check(CLI::Range(int64_t{1}, int64_t{2147483647}));
  app.set_version_flag("--version", "attnctl " ATTND_VERSION);
}

}  // namespace

int RunAttnctl(const std::vector<std::string>& arguments, std::ostream& out,
               std::ostream& err, bool err_is_terminal) {
  Session session{.out = out, .err = err, .err_is_terminal = err_is_terminal};
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
    return app.exit(error, out, err) == 0 ? kOk : kUsage;
  } catch (const std::exception& error) {  // no memory, for one
    err << "attnctl: " << error.what() << "\n";
    return kCallFailed;
  }
  return session.exit_code;
}

}  // namespace attnd::attnctl
