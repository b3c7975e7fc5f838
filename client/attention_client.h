// The C++ client of attnd: exact attention on a server, called with spans.
// Includes neither gRPC nor protobuf.
#ifndef ATTND_CLIENT_ATTENTION_CLIENT_H_
#define ATTND_CLIENT_ATTENTION_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/error_details.h"
#include "client/types.h"

namespace attnd::client {

class CallCanceller;
class RetryingChannel;
class ServerLimits;

// When a failed call is made again. That is so after UNAVAILABLE (there is no
// server, or it is shutting down), after RESOURCE_EXHAUSTED where the server
// names a delay, and after CANCELLED that came from a server and not from the
// caller. Before each new attempt the client waits for the server's delay, if
// any, and a backoff. The backoff grows by `multiplier` each time, and chance
// makes it up to a fifth shorter or longer. A call that would still be waiting
// at its deadline ends at once with its last error, whose message then also
// says how often the call was tried.
struct RetryPolicy {
  int max_attempts = 0;  // 0: until the deadline; 1: a call is never made again
  absl::Duration initial_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(2);
  double multiplier = 2;
};

struct ClientOptions {
  // Also "unix:/run/attnd.sock", "dns:///attnd:50051" or
  // "ipv4:10.0.0.1:50051,10.0.0.2:50051". Where a target has several addresses,
  // calls take turns among the servers that can be reached.
  std::string target = "127.0.0.1:50051";
  // How long a call may take, all its attempts together. May be infinite.
  absl::Duration deadline = absl::Seconds(60);
  // The largest message that is sent, or received. Chunks of a streamed answer
  // are received in any case; the largest has 1 MiB of data.
  int64_t max_message_bytes = int64_t{256} << 20;
  RetryPolicy retry = {};
  // A gRPC service config as JSON. Empty: the one that is installed as
  // attnd/v1/attention_grpc_service_config.json. If yours has a retryPolicy,
  // gRPC follows it within each attempt that `retry` makes. If gRPC refuses the
  // config, every call ends with INVALID_ARGUMENT.
  std::string service_config = {};
  // Is called with the error of an attempt before the pause that follows it. It
  // runs in the thread that waits for the call. For a call that no thread waits
  // for, it runs in a thread of gRPC and must not block.
  std::function<void(const absl::Status& failure)> on_retry = {};
};

// A call in flight. Dropping it does not stop the call; until it is dropped,
// owners of inputs may be kept.
class PendingCall {
 public:
  PendingCall() = default;
  explicit PendingCall(std::shared_ptr<CallCanceller> call);

  // Asks for the end: the callback comes soon, with CANCELLED unless the call
  // was over already. Thread-safe; harmless on a finished call.
  void Cancel() const;

 private:
  std::shared_ptr<CallCanceller> call_;
};

// One server. Cheap to copy: copies share a connection, which the first call
// opens and which is opened again when it was lost. Thread-safe.
//
//   attnd::client::AttentionClient client({.target = "127.0.0.1:50051"});
//   std::vector<float> q(8 * 64), k(32 * 64), v(32 * 64), output(8 * 64);
//   // ... fill q, k and v ...
//   absl::StatusOr<attnd::client::AttentionReply> reply = client.Attention(
//       {.query = {q, {8, 64}}, .key = {k, {32, 64}}, .value = {v, {32, 64}}},
//       {.output = output}, {.causal = attnd::client::Causal::kBottomRight});
//   if (!reply.ok()) {
//     std::cerr << reply.status() << "\n"
//               << attnd::client::DetailsOf(reply.status()).reason << "\n";
//   }
//
// Shapes and options are checked by the server, which names the field that it
// refuses; this side checks only that the answer fits the spans it goes to.
// A status carries the server's code, message and details (DetailsOf).
// What is too large for a message, by the server's limits or max_message_bytes,
// is streamed without being asked to: of the forward methods, where the server
// can. Its errors name fields below "header.", such as "header.key.shape[1]".
// Calls are made again as RetryPolicy says, so UNAVAILABLE means that there was
// no server until the deadline. A benchmark is not made again once it has
// begun, and a health check never is. A server that was replaced by one with
// other message limits may refuse a call; a call that a thread waits for is
// then sent once more in the form that the new server takes. After
// DEADLINE_EXCEEDED and CANCELLED the server stops computing, too. After any
// error the contents of the outputs are undefined. Outputs may lie over inputs,
// except in a SharedRegion. A streamed call is then not made again once its
// answer has begun to overwrite an input.
class AttentionClient {
 public:
  using Done = std::function<void(absl::StatusOr<AttentionReply>)>;
  using BackwardDone = std::function<void(absl::StatusOr<ExecutionStats>)>;

  explicit AttentionClient(ClientOptions options = {});

  // The same connection with another deadline.
  AttentionClient WithDeadline(absl::Duration deadline) const;

  // Each waits for the answer and writes it to `outputs`. Inputs with an owner
  // (ConstElements::OwnedBy) are sent from where they lie, others are copied
  // once before anything is sent; the answer is copied once. Those in a
  // SharedRegion (client/shared_region.h) are not sent at all, and the server
  // itself writes to outputs there.
  absl::StatusOr<AttentionReply> Attention(
      const AttentionInputs& inputs, const AttentionOutputs& outputs,
      const AttentionOptions& options = {}) const;
  absl::StatusOr<AttentionReply> SelfAttention(
      const ConstTensor& sequence, const AttentionOutputs& outputs,
      const AttentionOptions& options = {}) const;
  absl::StatusOr<AttentionReply> CrossAttention(
      const ConstTensor& queries, const ConstTensor& kv_sequence,
      const AttentionOutputs& outputs,
      const AttentionOptions& options = {}) const;

  // The gradients of Attention. `options` are those that it was called with.
  absl::StatusOr<ExecutionStats> AttentionBackward(
      const BackwardInputs& inputs, const BackwardOutputs& outputs,
      const AttentionOptions& options = {}) const;

  // The same without waiting. `done` is called exactly once: in a thread of
  // gRPC, where it must not block, or before this returns if the call cannot
  // start. Inputs may go away as soon as this returns (those with an owner are
  // kept by it), outputs only after `done` was called; the client need not
  // stay.
  PendingCall AttentionAsync(const AttentionInputs& inputs,
                             const AttentionOutputs& outputs,
                             const AttentionOptions& options, Done done) const;
  PendingCall SelfAttentionAsync(const ConstTensor& sequence,
                                 const AttentionOutputs& outputs,
                                 const AttentionOptions& options,
                                 Done done) const;
  PendingCall CrossAttentionAsync(const ConstTensor& queries,
                                  const ConstTensor& kv_sequence,
                                  const AttentionOutputs& outputs,
                                  const AttentionOptions& options,
                                  Done done) const;

  PendingCall AttentionBackwardAsync(const BackwardInputs& inputs,
                                     const BackwardOutputs& outputs,
                                     const AttentionOptions& options,
                                     BackwardDone done) const;

  // Times flash against naive attention on the server. `on_progress` runs in
  // this thread after each event; where it answers false, the run is cancelled.
  absl::StatusOr<BenchmarkResult> Benchmark(
      const BenchmarkOptions& options,
      const std::function<bool(const BenchmarkProgress&)>& on_progress) const;

  absl::StatusOr<MemoryEstimate> EstimateMemory(
      const MemoryEstimateOptions& options) const;

  absl::StatusOr<ServerInfo> GetServerInfo() const;

  // grpc.health.v1: "" is the server as a whole. NOT_FOUND for a service that
  // it does not know.
  absl::StatusOr<Health> CheckHealth(const std::string& service = "") const;

 private:
  ClientOptions options_;
  std::shared_ptr<RetryingChannel> channel_;
  std::shared_ptr<ServerLimits> limits_;
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ATTENTION_CLIENT_H_
