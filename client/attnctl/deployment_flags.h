// The flags of attnctl estimate that turn the cost of a call into a deployment:
// the limits of a container (--limits), and how many servers a rate of calls
// needs (--rate).
#ifndef ATTND_CLIENT_ATTNCTL_DEPLOYMENT_FLAGS_H_
#define ATTND_CLIENT_ATTNCTL_DEPLOYMENT_FLAGS_H_

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "client/attnctl/session.h"
#include "client/types.h"

namespace attnd::attnctl {

struct DeploymentFlags {
  std::string limits;          // the format; empty without --limits
  std::optional<double> rate;  // calls per second
  double p99_ms = 0;           // set with `rate`
  std::optional<double> gflops;
  std::string bench;                   // the path of a file
  std::optional<double> bench_gflops;  // set by ReadBench
  std::optional<double> gigabytes_per_second;
  std::string shm_socket;

  // Returns whether one of the flags was given.
  bool given() const { return !limits.empty() || rate; }
  // Returns whether the time of calls has to be measured.
  bool measures() const { return rate && !gflops && bench.empty(); }
};

// Adds the flags to `command`, which must have --concurrency. They must outlive
// it.
void AddDeploymentFlags(CLI::App& command, DeploymentFlags& flags);

// Reads the file of --bench, if that flag was given. Sets bench_gflops, and
// options.threads to that of the benchmark. A benchmark with another type or
// another number of threads than `options` is an error, because the rate of
// operations depends on both. Call it before the estimate, which depends on the
// threads.
ExitCode ReadBench(DeploymentFlags& flags,
                   client::MemoryEstimateOptions& options, Session& session);

// Prints what the flags ask for, as JSON if `json`. `estimate` is the estimate
// for `options`. Asks the server for what it needs, and makes calls to it if
// their rate has to be measured, unless `offline`. A problem that is too large
// to be computed is an error. Returns kNoAnswer if no number of pods is enough.
ExitCode PrintDeployment(const DeploymentFlags& flags,
                         const client::MemoryEstimateOptions& options,
                         const client::MemoryEstimate& estimate, bool offline,
                         bool json, Session& session);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_DEPLOYMENT_FLAGS_H_
