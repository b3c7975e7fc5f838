// Reads the options of attnd from flags, environment variables and a file. If
// more than one of these sets an option, the flag counts before the environment
// variable, and the variable before the file. docs/configuration.md describes
// each option for users. Does not use gRPC.
#ifndef ATTND_SERVER_SERVER_CONFIG_H_
#define ATTND_SERVER_SERVER_CONFIG_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cost/cost_limits.h"
#include "cost/memory_shares.h"
#include "server/access/access_control.h"
#include "server/connections/listen_address.h"

namespace attnd::server {

// The value of every option. The defaults here are those of attnd.
struct ServerConfig {
  // The addresses to listen on: host:port or unix:PATH. Port 0 is any free one.
  std::vector<std::string> listen = {"127.0.0.1:50051"};
  // The mode of the unix sockets of `listen` and of shm_socket.
  mode_t socket_mode = kOwnersSocketMode;
  // The address of the admin port, host:port; "" = no admin port.
  std::string admin_listen = "127.0.0.1:50052";
  // The files of certificates and tokens; "" = off.
  AccessOptions access;
  // The file to which the server writes its addresses once clients can connect;
  // "" = no file.
  std::string address_file;
  // The unix socket on which clients on this host register memory; "" = off.
  std::string shm_socket;
  // The users (uids) whose processes may use shm_socket; empty = all users that
  // socket_mode allows.
  std::vector<uint32_t> shm_allow_uids;
  // The most bytes of shared memory that the processes of one uid may register
  // in total; 0 = as many as the memory budget.
  int64_t shm_quota_bytes = 0;
  // The number of threads that compute attention, not counting threads for the
  // network; 0 = as many as the cgroup and the CPU affinity allow.
  int threads = 0;
  // The size of the largest request and of the largest response.
  int64_t max_message_bytes = CostLimits().max_message_bytes;
  // The bytes that all requests together may hold; 0 = what the other shares of
  // the available memory leave (ShareMemory).
  int64_t memory_budget_bytes = 0;
  // The number of requests that may run or wait at the same time. With those of
  // clients within their share, there can be twice as many (Admission).
  int64_t max_in_flight = CostLimits().max_in_flight;
  // The number of connections that all clients together may have open at the
  // same time; 0 = as many as memory and file descriptors allow
  // (DefaultConnections).
  int64_t max_connections = 0;
  // How long the server reports NOT_SERVING and still serves everything before
  // it drains. 0 is the default because only clients and load balancers that
  // ask for the health need the time, and because a stop without them would
  // take longer for nothing: docker stop kills the process after 10 s.
  double drain_announce_s = 0;
  // How long running requests may take to finish in a drain; 0 = no time.
  // The default ends before the 30 s after which Kubernetes kills the process.
  double drain_timeout_s = 25;
  // How long the server waits for a client that sends, or reads, less than 64
  // KiB in that time, before it ends the call; 0 = no limit.
  double stream_idle_timeout_s = 60;
  // debug, info, warning or error.
  std::string log_level = "info";
  // text or json.
  std::string log_format = "text";
  // none, or otlp where SpanExporter::IsBuiltIn.
  std::string trace_export = "none";
  // The largest num_vectors that Benchmark accepts.
  int64_t max_benchmark_vectors = 32768;
  // How long one call of Benchmark may take; 0 = no limit.
  double max_benchmark_s = 60;
  // The age at which the server asks a client to replace its connection by a
  // new one; 0 = never.
  double max_connection_age_s = 0;
};

// An option as it was set, for --print-config.
struct Setting {
  std::string option;               // without the leading dashes
  std::vector<std::string> values;  // as they were written
  bool is_list = false;             // whether the option takes several values
  // Where the values come from, such as "flag --threads", "variable
  // ATTND_THREADS", "file /etc/attnd.toml" or "default".
  std::string source;
};

// What the command line asks the program to do: to serve clients as `config`
// says, to examine the configuration, or to print a text.
struct CommandLine {
  enum class Action { kServe, kCheckConfig, kPrintConfig };

  Action action = Action::kServe;
  ServerConfig config;
  std::vector<Setting> settings;  // every option except --config
  // If set (--help, --version), print this text and exit.
  std::optional<std::string> answer;
};

// Environment variables, from their names to their values.
using Environment = std::map<std::string, std::string>;

// Parses `args`, the command line without the name of the program. Reads no
// file except the one that --config names. INVALID_ARGUMENT says which options
// are wrong: its message has a line for each.
absl::StatusOr<CommandLine> ParseConfig(const std::vector<std::string>& args,
                                        const Environment& environment);

// Returns the variables in `entries` whose names begin with ATTND_. `entries`
// is a list as in environ: each entry is "NAME=VALUE", and the last one is
// null.
Environment EnvironmentOf(const char* const* entries);

// Returns the names of all options without the leading dashes, such as
// "max-in-flight". --help and other flags that ask the program for something
// else than to serve are not among them.
std::vector<std::string> OptionNames();

// Returns the names in `environment` that nothing uses: they stand for no
// option of attnd or attnctl, and are not those that Kubernetes sets for a
// Service named attnd. Somebody probably misspelt or guessed them, as in
// ATTND_PORT=50052.
std::vector<std::string> UnknownVariables(const Environment& environment);

// Returns how many connections fit into a process that may have `descriptors`
// open file descriptors. The server needs some of these for itself.
int64_t DescriptorsForConnections(int64_t descriptors);

// Returns the default of --max-connections: as many connections as fit into a
// quarter of the share for arriving messages, but at most
// DescriptorsForConnections. An idle connection takes 16 KiB, and with `tls`
// 128 KiB.
int64_t DefaultConnections(const MemoryShares& shares, int64_t descriptors,
                           bool tls = false);

// Returns --max-connections or its default. Returns INVALID_ARGUMENT if the
// option asks for more connections than `descriptors` allow.
absl::StatusOr<int64_t> MaxConnections(const ServerConfig& config,
                                       const MemoryShares& shares,
                                       int64_t descriptors);

// Returns how the server of `config` divides the memory of this machine.
MemoryShares SharesOf(const ServerConfig& config);

}  // namespace attnd::server

#endif  // ATTND_SERVER_SERVER_CONFIG_H_
