// The subcommands: each adds its flags to the app and leaves its exit code in
// the session when it was the one that ran.
#ifndef ATTND_CLIENT_ATTNCTL_COMMANDS_H_
#define ATTND_CLIENT_ATTNCTL_COMMANDS_H_

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "client/attnctl/session.h"
#include "client/types.h"

namespace attnd::attnctl {

void AddAttentionCommands(CLI::App& app, Session& session);
void AddBackwardCommand(CLI::App& app, Session& session);
void AddBenchCommand(CLI::App& app, Session& session);
void AddEstimateCommand(CLI::App& app, Session& session);
void AddInfoCommand(CLI::App& app, Session& session);
void AddHealthCommand(CLI::App& app, Session& session);

Json StatsJson(const client::ExecutionStats& stats);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_COMMANDS_H_
