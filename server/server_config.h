// Every option of attnd: its default, its unit and what it is for. Filled from
// flags, environment and file, in that order of weight. Knows no gRPC.
#ifndef ATTND_SERVER_SERVER_CONFIG_H_
#define ATTND_SERVER_SERVER_CONFIG_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/connections/listen_address.h"

namespace attnd::server {

struct ServerConfig {
  // host:port or unix:PATH; port 0 picks a free one.
  std::vector<std::string> listen = {"127.0.0.1:50051"};
  // Of the files of unix sockets: those of `listen`, and shm_socket.
  mode_t socket_mode = kOwnersSocketMode;
  // Where the bound addresses are written once clients are served; "" = not.
  std::string address_file;
  // Unix socket on which clients of this host register memory; "" = off.
  std::string shm_socket;
  // Whose processes may; empty = those that socket_mode lets in.
  std::vector<uint32_t> shm_allow_uids;
  // What the regions of one uid may come to, bytes; 0 = the memory budget.
  int64_t shm_quota_bytes = 0;
  // Compute threads; 0 = what cgroup and affinity allow.
  int threads = 0;
  // The largest request and response, bytes.
  int64_t max_message_bytes = 256LL << 20;
  // What all requests together may hold, bytes; 0 = as ShareMemory says.
  int64_t memory_budget_bytes = 0;
  // Requests that run and wait.
  int64_t max_in_flight = 256;
  // Connections that clients may have open at a time; 0 = DefaultConnections.
  int64_t max_connections = 0;
  // How long running requests may take to finish after SIGTERM, seconds. Ends
  // before the 30 s after which Kubernetes kills.
  double drain_timeout_s = 25;
  // How long a stream's client may send nothing while it is its turn, or read
  // nothing of what is written to it, seconds; 0 = as long as it likes.
  double stream_idle_timeout_s = 60;
  // debug, info, warning or error.
  std::string log_level = "info";
  // The largest num_vectors of Benchmark.
  int64_t max_benchmark_vectors = 32768;
  // How long one Benchmark may take, seconds; 0 = no limit.
  double max_benchmark_s = 60;
  // After how long a client is asked to connect anew, seconds; 0 = never.
  double max_connection_age_s = 0;
};

// What a command line asks for.
struct CommandLine {
  ServerConfig config;
  // --help or --version: print this and exit.
  std::optional<std::string> answer;
};

using Environment = std::map<std::string, std::string>;

// `args` without the program's name. Reads the file that --config names and
// nothing else. INVALID_ARGUMENT that says which option is wrong.
absl::StatusOr<CommandLine> ParseConfig(const std::vector<std::string>& args,
                                        const Environment& environment);

// The environment's entries as a map.
Environment EnvironmentOf(const char* const* entries);

// "max-in-flight" and so on: every option that a file may hold, and --config.
std::vector<std::string> OptionNames();

// Names of `environment` that are neither an option's nor attnctl's, and that
// Kubernetes did not set for a Service named attnd: most likely misspelt, or
// guessed (ATTND_PORT=50052).
std::vector<std::string> UnknownVariables(const Environment& environment);

// What the server's memory is for; the three together are all of it.
struct MemoryShares {
  // The sum of the three, or the largest int64 if the sum does not fit.
  int64_t total_bytes() const;

  int64_t budget_bytes = 0;    // requests that were let in, by Admission
  int64_t arriving_bytes = 0;  // messages that are not
  int64_t own_bytes = 0;       // code, threads, and what malloc keeps
};

// Of `available_bytes` a tenth is the server's own, at least 256 MiB and at
// most a quarter. Arriving messages get another quarter, but no more than 16 of
// the largest take: requests that fill the rest came in no more than that. A
// budget that `config` names is believed; beside it half as much may arrive, at
// least one message, which gRPC receives in small pieces once four fifths are
// taken, and 64 MiB, for the buffers of many connections.
MemoryShares ShareMemory(const ServerConfig& config, int64_t available_bytes);

// How many connections fit into `descriptors`, the number of descriptors that
// the process may have open, beside the descriptors of the server itself.
int64_t DescriptorsForConnections(int64_t descriptors);

// The default of --max-connections: as many as fit into a quarter of the share
// for arriving messages, at 16 KiB for each idle connection, but no more than
// DescriptorsForConnections.
int64_t DefaultConnections(const MemoryShares& shares, int64_t descriptors);

}  // namespace attnd::server

#endif  // ATTND_SERVER_SERVER_CONFIG_H_
