#include "client/attnctl/deployment_flags.h"

#include <map>
#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "client/attnctl/container_limits.h"
#include "core/machine.h"

namespace attnd::attnctl {
namespace {

const std::map<std::string, LimitsFormat>& LimitsFormats() {
  static const auto* const kFormats = new std::map<std::string, LimitsFormat>{
      {"kubernetes", LimitsFormat::kKubernetes},
      {"compose", LimitsFormat::kCompose},
      {"flags", LimitsFormat::kFlags}};
  return *kFormats;
}

// Returns the number of threads that compute a call.
absl::StatusOr<int64_t> ThreadsOf(const client::MemoryEstimateOptions& options,
                                  bool offline, Session& session) {
  if (options.threads != 0) return options.threads;
  if (offline) return AvailableThreads();
  ATTND_ASSIGN_OR_RETURN(const client::ServerInfo info,
                         session.Connect().GetServerInfo());
  return info.threads;
}

}  // namespace

void AddDeploymentFlags(CLI::App& command, DeploymentFlags& flags) {
  command
      .add_flag("--limits{kubernetes}", flags.limits,
                "print the limits that a server and its container need for "
                "--concurrency such calls at once, to be pasted: "
                "--limits=kubernetes (default), compose or flags")
      ->check(CLI::IsMember(&LimitsFormats()));
}

ExitCode PrintDeployment(const DeploymentFlags& flags,
                         const client::MemoryEstimateOptions& options,
                         const client::MemoryEstimate& estimate, bool offline,
                         bool json, Session& session) {
  const auto threads = ThreadsOf(options, offline, session);
  if (!threads.ok()) return session.CallError(threads.status());
  const int64_t concurrency =
      options.concurrency != 0 ? options.concurrency : 1;
  const auto limits =
      SolveLimits(estimate, options.transport, *threads, concurrency);
  if (!limits.ok()) {
    session.screen.PrintError(
        absl::StrCat("attnctl: --limits: ", limits.status().message()));
    return kUsage;
  }
  if (json) {
    session.screen.PrintJson(LimitsJson(*limits));
    return kOk;
  }
  for (const std::string& line :
       LimitsText(*limits, LimitsFormats().at(flags.limits))) {
    session.screen.Print(line);
  }
  return kOk;
}

}  // namespace attnd::attnctl
