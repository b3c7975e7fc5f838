// The forward methods: one message each way, or AttentionStream for what is too
// large for that. Knows the server's limits and protobuf, not gRPC.
#ifndef ATTND_CLIENT_FORWARD_CALL_H_
#define ATTND_CLIENT_FORWARD_CALL_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "client/rpc_channel.h"
#include "client/types.h"

namespace attnd::client {

// A forward method. Self and cross attention pass a tensor for several: where
// they stream, each goes by itself, for AttentionStream has no other header.
enum class Method { kAttention, kSelfAttention, kCrossAttention };

// A call's arguments, which the caller has.
struct ForwardCall {
  Method method;
  const AttentionInputs& inputs;
  const AttentionOutputs& outputs;
  const AttentionOptions& options;
};

// What a server says of its messages.
struct MessageLimits {
  int64_t request_bytes = std::numeric_limits<int64_t>::max();
  int64_t response_bytes = std::numeric_limits<int64_t>::max();
  bool streams = false;

  friend bool operator==(const MessageLimits&, const MessageLimits&) = default;
};

// Asked once for all calls of a connection that are not small, and again where
// a call fails because another server has taken the place. Thread-safe.
class ServerLimits {
 public:
  std::optional<MessageLimits> Get() const;

  // Keeps what a server answered, also that it does not know the method.
  absl::StatusOr<MessageLimits> Take(const absl::StatusOr<ServerInfo>& info);

  // To be asked again.
  void Forget();

 private:
  mutable std::mutex mutex_;
  std::optional<MessageLimits> limits_;
};

absl::StatusOr<ServerInfo> AskServer(RpcChannel& channel,
                                     absl::Duration deadline);

// Waits for the answer.
absl::StatusOr<AttentionReply> CallForward(RpcChannel& channel,
                                           ServerLimits& server,
                                           const ForwardCall& call,
                                           const ClientOptions& options);

// Calls `done` once, in this thread where the call cannot be made.
using ForwardDone = AttentionClient::Done;
PendingCall StartForward(const std::shared_ptr<RpcChannel>& channel,
                         const std::shared_ptr<ServerLimits>& server,
                         const ForwardCall& call, const ClientOptions& client,
                         ForwardDone done);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_FORWARD_CALL_H_
