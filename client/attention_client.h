// The C++ client library of attnd. Use it to compute exact attention on an
// attnd server: tensors are spans of your memory, and results are
// absl::StatusOr. This header includes neither gRPC nor protobuf.
#ifndef ATTND_CLIENT_ATTENTION_CLIENT_H_
#define ATTND_CLIENT_ATTENTION_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
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

// Says which failed calls the client repeats, and how long it waits before each
// new attempt. It repeats a call only after one of these errors:
//
// - UNAVAILABLE: there is no server, or the server is shutting down.
// - RESOURCE_EXHAUSTED, if the server says how long to wait.
// - CANCELLED, if the server cancelled the call, not the caller.
//
// Before each new attempt, the client waits for the delay that the server asks
// for, if any, and then for a backoff. The backoff grows by the factor
// `multiplier` from one attempt to the next, up to `max_backoff`. Each time, a
// random factor makes it up to a fifth shorter or longer. If the pause would
// last until the deadline, the call ends at once with the error of the last
// attempt. The message of that error says how often the call was tried, if it
// was tried more than once.
struct RetryPolicy {
  // How often a call is tried at most, including the first time. 0 means until
  // the deadline. 1 means that the client never repeats a call.
  int max_attempts = 0;
  absl::Duration initial_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(2);
  double multiplier = 2;
};

// How the client knows that it calls the right server, and how it says who it
// is. `ca`, `cert` and `key` each are the path of a PEM file, or the PEM text
// itself, which begins with "-----BEGIN". The client reads the files once, when
// it is made.
struct TlsOptions {
  // The certificates of the authorities that can have signed the certificate of
  // the server. If it is empty, those that the system trusts.
  std::string ca = {};
  // The certificate of the client with its chain, and its private key, for
  // servers that ask for them (mTLS). Set both or neither.
  std::string cert = {};
  std::string key = {};
  // The name that the certificate of the server must have, if that is not the
  // host in the target. For a unix socket, the host is "localhost".
  std::string server_name = {};
};

struct ClientOptions {
  // The address of the server as a gRPC target. Other examples are
  // "unix:/run/attnd.sock", "dns:///attnd:50051" and
  // "ipv4:10.0.0.1:50051,10.0.0.2:50051". If a target has several addresses,
  // the calls take turns among the servers that can be reached.
  std::string target = "127.0.0.1:50051";
  // The time that a call may take, including all its attempts and the pauses
  // between them. absl::InfiniteDuration() sets no limit.
  absl::Duration deadline = absl::Seconds(60);
  // The largest message that the client sends or receives, in bytes. Chunks of
  // a streamed answer, with up to 1 MiB of data each, are received even if this
  // is less.
  int64_t max_message_bytes = int64_t{256} << 20;
  RetryPolicy retry = {};
  // TLS to the server. If it is unset, the client sends everything in plain
  // text.
  std::optional<TlsOptions> tls = {};
  // A bearer token, which the client sends with each call (`authorization:
  // Bearer TOKEN`). It is either in `token` or in the file `token_file`, which
  // the client reads again when it is more than a second old, so that a new
  // token in the file takes effect. Space around the token in the file is left
  // out.
  std::string token = {};
  std::string token_file = {};
  // Whether the client sends the token without TLS to another host, where
  // everybody on the way can read it. Without TLS and without this, a client
  // with such a target fails every call with INVALID_ARGUMENT. Set it if
  // something else encrypts the connection, for example a service mesh.
  bool allow_plaintext_token = false;
  // Whether the client calls only servers that say that they are SERVING (the
  // service grpc.health.v1), so that it leaves a server that drains before that
  // server refuses a call. Turn it off if a proxy chooses a server for each
  // call, because the answer of one server would then count for all of them.
  bool only_healthy = true;
  // A gRPC service config as JSON. If it is empty, the client uses the one that
  // is installed as attnd/v1/attention_grpc_service_config.json. If your config
  // has a retryPolicy, gRPC applies it within each attempt that `retry` makes.
  // If gRPC rejects the config, every call fails with INVALID_ARGUMENT.
  std::string service_config = {};
  // The client calls this function with the error of a failed attempt, before
  // the pause that precedes the next attempt. For calls that wait, it runs in
  // the thread of the caller. For asynchronous calls, it runs in a thread of
  // gRPC and must not block.
  std::function<void(const absl::Status& failure)> on_retry = {};
};

// A handle to an asynchronous call, with which you can cancel it. Destroying
// the handle does not stop the call. The handle may keep the owners of the
// inputs (ConstElements::OwnedBy) alive for as long as it exists.
class PendingCall {
 public:
  PendingCall() = default;
  // Only the library calls this constructor.
  explicit PendingCall(std::shared_ptr<CallCanceller> call);

  // Cancels the call and returns at once. The callback then runs soon, with
  // CANCELLED unless the call had already ended. Has no effect on a call that
  // is over, and on a handle without a call. Thread-safe.
  void Cancel() const;

 private:
  std::shared_ptr<CallCanceller> call_;
};

// Makes calls to one attnd server, or to several equal servers behind one
// target. Thread-safe. Cheap to copy: copies share a connection. The first call
// opens the connection, and the client opens it again when it is lost.
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
// Errors: A status has the code and the message of the server. DetailsOf
// (client/error_details.h) returns the rest, such as the reason. The server
// checks shapes and options, and its message names the field that it rejects.
// The client itself only checks that the outputs have the size of the answer.
// After any error, the contents of the outputs are undefined. After
// DEADLINE_EXCEEDED and CANCELLED, the server stops computing, too.
//
// Large calls: If the request or the answer of a forward call (Attention,
// SelfAttention or CrossAttention) is larger than the server or
// max_message_bytes allows for one message, the client streams it in chunks, if
// the server supports that. The errors of a streamed call name fields below
// "header.", for example "header.key.shape[1]".
//
// Retries: The client repeats failed calls according to RetryPolicy. So with
// the default policy, UNAVAILABLE means that there was no server until the
// deadline. The client does not repeat a benchmark of which it has received a
// message, and never repeats a health check. A call may also fail because the
// server was replaced by one with other message limits. If a thread waits for
// that call, the client sends it once more, as one message or as a stream,
// whichever the new server accepts. It does not do so for an asynchronous call.
//
// Overlapping memory: Outputs may overlap inputs, except in a SharedRegion. The
// client does not repeat a streamed call once its answer has begun to overwrite
// an input.
class AttentionClient {
 public:
  using Done = std::function<void(absl::StatusOr<AttentionReply>)>;
  using BackwardDone = std::function<void(absl::StatusOr<ExecutionStats>)>;

  explicit AttentionClient(ClientOptions options = {});

  // Returns a client that shares the connection of this one, and allows each
  // call the time `deadline`.
  AttentionClient WithDeadline(absl::Duration deadline) const;

  // Computes attention, waits for the answer and writes it to `outputs`.
  //
  // The client copies inputs once, before it sends anything, and copies the
  // answer once. It does not copy inputs that have an owner
  // (ConstElements::OwnedBy). Tensors in a SharedRegion
  // (client/shared_region.h) are not sent at all: the server reads and writes
  // them in place.
  absl::StatusOr<AttentionReply> Attention(
      const AttentionInputs& inputs, const AttentionOutputs& outputs,
      const AttentionOptions& options = {}) const;
  // Computes attention like Attention, with `sequence` as query, key and value.
  absl::StatusOr<AttentionReply> SelfAttention(
      const ConstTensor& sequence, const AttentionOutputs& outputs,
      const AttentionOptions& options = {}) const;
  // Computes attention like Attention, with `queries` as query, and
  // `kv_sequence` as key and value.
  absl::StatusOr<AttentionReply> CrossAttention(
      const ConstTensor& queries, const ConstTensor& kv_sequence,
      const AttentionOutputs& outputs,
      const AttentionOptions& options = {}) const;

  // Computes the gradients of a call to Attention, waits for them and writes
  // them to `outputs`. `options` must be those of that call.
  absl::StatusOr<ExecutionStats> AttentionBackward(
      const BackwardInputs& inputs, const BackwardOutputs& outputs,
      const AttentionOptions& options = {}) const;

  // The asynchronous forms of the four methods above. They start a call, return
  // without waiting for the answer, and call `done` exactly once. `done` runs
  // in a thread of gRPC, where it must not block. If the call cannot start,
  // `done` runs before the method returns.
  //
  // You may free inputs as soon as the method returns; the client keeps inputs
  // that have an owner alive by that owner. Outputs must stay valid until
  // `done` has been called. You may destroy the client before that.
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

  // Runs flash and naive attention on the server, waits, and returns the times
  // of both. Calls `on_progress` in this thread for each progress report of the
  // server, and cancels the benchmark if `on_progress` returns false.
  // `on_progress` can be empty. Any thread can cancel the benchmark at any time
  // with the source of `stop`, which has no effect once the result has arrived.
  absl::StatusOr<BenchmarkResult> Benchmark(
      const BenchmarkOptions& options,
      const std::function<bool(const BenchmarkProgress&)>& on_progress,
      const std::stop_token& stop = {}) const;

  // Returns the memory that a problem would take on the server, without
  // computing it.
  absl::StatusOr<MemoryEstimate> EstimateMemory(
      const MemoryEstimateOptions& options) const;

  // Returns the version, the limits, the features and the load of the server.
  absl::StatusOr<ServerInfo> GetServerInfo() const;

  // Asks the health service of the server (grpc.health.v1) about the gRPC
  // service with the full name `service`. An empty name asks about the server
  // as a whole. Returns NOT_FOUND if the server does not know the service.
  absl::StatusOr<Health> CheckHealth(const std::string& service = "") const;

 private:
  ClientOptions options_;
  std::shared_ptr<RetryingChannel> channel_;
  std::shared_ptr<ServerLimits> limits_;
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ATTENTION_CLIENT_H_
