// The subcommands of attnctl. Each function adds one or more commands to `app`.
// When CLI11 parses the command line, it runs the command that was given, which
// stores its exit code in `session`. `session` must outlive `app`.
#ifndef ATTND_CLIENT_ATTNCTL_COMMANDS_H_
#define ATTND_CLIENT_ATTNCTL_COMMANDS_H_

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "client/attnctl/session.h"
#include "client/types.h"

namespace attnd::attnctl {

// Adds the commands attention, self and cross.
void AddAttentionCommands(CLI::App& app, Session& session);
void AddBackwardCommand(CLI::App& app, Session& session);
void AddBenchCommand(CLI::App& app, Session& session);
void AddEstimateCommand(CLI::App& app, Session& session);
void AddInfoCommand(CLI::App& app, Session& session);
void AddHealthCommand(CLI::App& app, Session& session);
void AddTopCommand(CLI::App& app, Session& session);

// Returns `stats` for --json.
Json StatsJson(const client::ExecutionStats& stats);
// Returns `load` for --json.
Json LoadJson(const client::ServerLoad& load);
// Returns the name that grpc.health.v1 has for `health`.
const char* HealthName(client::Health health);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_COMMANDS_H_
