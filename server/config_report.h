// Answers --check-config and --print-config: what is wrong with a configuration
// on this machine, and what the configuration is. Neither needs a server, and
// neither opens a port or writes a file. Does not use gRPC.
#ifndef ATTND_SERVER_CONFIG_REPORT_H_
#define ATTND_SERVER_CONFIG_REPORT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/server_config.h"

namespace attnd::server {

// What CheckConfig has found. Each text begins with the option.
struct ConfigFindings {
  // A server with this configuration would not start.
  std::vector<std::string> errors;
  // A server would start, but probably not serve as its user expects.
  std::vector<std::string> warnings;
};

// Checks the configuration against this machine: addresses, the paths of
// sockets and files, the contents of the files of certificates and tokens, and
// the limits of memory, processors and open files. It does not notice that
// another program uses an address, so that it can check what a running server
// will be restarted with. Raises the process's limit of open files, as a server
// does.
ConfigFindings CheckConfig(const ServerConfig& config);

// Returns a file for --config that sets every option of `line` to its value.
// The line above an option is a comment that says where the value comes from,
// and what a default of 0 means on this machine. Returns INVALID_ARGUMENT if a
// value cannot be written in such a file. The options have no secrets, but the
// names of files that do.
absl::StatusOr<std::string> PrintConfig(const CommandLine& line);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONFIG_REPORT_H_
