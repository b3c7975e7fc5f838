// Implements attnctl info and attnctl health.
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/attnctl/commands.h"

namespace attnd::attnctl {
namespace {

// A server that does not answer within this time is not healthy.
constexpr absl::Duration kHealthDeadline = absl::Seconds(3);

// Users run info to see whether there is a server, so info does not wait for
// one to start.
constexpr client::RetryPolicy kNoRetries = {.max_attempts = 1};

ExitCode RunInfo(bool json, Session& session) {
  const auto info = session
                        .Connect(client::ClientOptions().deadline, kNoRetries,
                                 /*only_healthy=*/false)
                        .GetServerInfo();
  if (!info.ok()) return session.CallError(info.status());
  if (json) {
    session.screen.PrintJson(
        {{"server", session.server},
         {"version", info->version},
         {"isa", info->isa},
         {"threads", info->threads},
         {"max_receive_message_bytes", info->max_receive_message_bytes},
         {"max_send_message_bytes", info->max_send_message_bytes},
         {"memory_budget_bytes", info->memory_budget_bytes},
         {"max_benchmark_vectors", info->max_benchmark_vectors},
         {"features", info->features},
         {"load", LoadJson(info->load)}});
    return kOk;
  }
  const client::ServerLoad& load = info->load;
  session.PrintRows(
      {{"server", session.server},
       {"version", info->version},
       {"instruction set", info->isa},
       {"worker threads", absl::StrCat(info->threads)},
       {"largest request", FormatBytes(info->max_receive_message_bytes)},
       {"largest response", FormatBytes(info->max_send_message_bytes)},
       {"memory budget", FormatBytes(info->memory_budget_bytes)},
       {"largest benchmark",
        absl::StrCat(info->max_benchmark_vectors, " vectors")},
       {"features",
        info->features.empty() ? "none" : absl::StrJoin(info->features, ", ")},
       {"up for", FormatUptime(load.uptime)},
       {"requests now",
        absl::StrCat(load.in_flight, " of ", load.max_in_flight)},
       {"memory held now", FormatBytes(load.reserved_bytes)},
       {"connections now",
        absl::StrCat(load.connections, " of ", load.max_connections)}});
  return kOk;
}

ExitCode RunHealth(const std::string& service, Session& session) {
  const auto health =
      session.Connect(kHealthDeadline, kNoRetries, /*only_healthy=*/false)
          .CheckHealth(service);
  if (!health.ok()) {
    // For any error of the call, it is unknown whether the server is serving.
    return session.CallError(health.status()) == kUsage ? kUsage : kUnavailable;
  }
  session.screen.Print(HealthName(*health));
  return *health == client::Health::kServing ? kOk : kUnavailable;
}

}  // namespace

void AddInfoCommand(CLI::App& app, Session& session) {
  CLI::App* command = app.add_subcommand(
      "info", "Show the version, limits, features and load of a server");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "print JSON");
  command->footer("Example:\n  attnctl info --server=127.0.0.1:50051 --json\n");
  command->callback(
      [json, &session] { session.exit_code = RunInfo(*json, session); });
}

void AddHealthCommand(CLI::App& app, Session& session) {
  CLI::App* command = app.add_subcommand(
      "health",
      "Check whether a server is serving; the exit code is 0 only if it is");
  auto service = std::make_shared<std::string>();
  command->add_option(
      "--service", *service,
      "full name of the gRPC service to check; default: the server "
      "as a whole");
  command->footer(
      "Prints SERVING, NOT_SERVING or UNKNOWN. Without --deadline, health "
      "waits\n"
      "up to 3 seconds for the answer.\n"
      "Example:\n"
      "  attnctl health --server=unix:/run/attnd.sock \\\n"
      "      --service=attnd.v1.AttentionService\n");
  command->callback([service, &session] {
    session.exit_code = RunHealth(*service, session);
  });
}

}  // namespace attnd::attnctl
