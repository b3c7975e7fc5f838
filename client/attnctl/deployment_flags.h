// The flags of attnctl estimate that turn the memory of a call into a
// deployment: the limits of a container (--limits).
#ifndef ATTND_CLIENT_ATTNCTL_DEPLOYMENT_FLAGS_H_
#define ATTND_CLIENT_ATTNCTL_DEPLOYMENT_FLAGS_H_

#include <CLI/CLI.hpp>
#include <string>

#include "client/attnctl/session.h"
#include "client/types.h"

namespace attnd::attnctl {

struct DeploymentFlags {
  std::string limits;  // the format; empty unless --limits was given

  // Returns whether one of the flags was given.
  bool given() const { return !limits.empty(); }
};

// Adds the flags to `command`. They must outlive it.
void AddDeploymentFlags(CLI::App& command, DeploymentFlags& flags);

// Prints what the flags ask for, as JSON if `json`. `estimate` is the estimate
// for `options`. Asks the server for what it needs, unless `offline`.
ExitCode PrintDeployment(const DeploymentFlags& flags,
                         const client::MemoryEstimateOptions& options,
                         const client::MemoryEstimate& estimate, bool offline,
                         bool json, Session& session);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_DEPLOYMENT_FLAGS_H_
