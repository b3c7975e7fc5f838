// Calls the rpcs that compute attention (not its gradients). Sends one message
// and receives one, or uses AttentionStream if one of these would be too large.
// Uses protobuf, but not gRPC.
#ifndef ATTND_CLIENT_FORWARD_CALL_H_
#define ATTND_CLIENT_FORWARD_CALL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/attention_client.h"
#include "client/forward_request.h"
#include "client/message_limits.h"
#include "client/retry.h"
#include "client/retrying_channel.h"
#include "client/types.h"

namespace attnd::client {

// Calls GetServerInfo, waits, and returns the answer.
absl::StatusOr<ServerInfo> AskServer(const RetryingChannel& channel,
                                     const CallTime& time);

// Makes `call`, waits for the answer, and writes it to the outputs of `call`.
// First asks the server for its message limits if `server` does not know them,
// unless the call is so small that every server accepts it as one message
// (IsInline). Makes the call a second time if it may have failed because the
// limits have changed.
absl::StatusOr<AttentionReply> CallForward(const RetryingChannel& channel,
                                           ServerLimits& server,
                                           const ForwardCall& call,
                                           const ClientOptions& options);

// Starts `call` and returns at once. Then calls `done` once, in a thread of
// gRPC, or in this thread if the call cannot be made. Does not repeat a call
// that fails because the limits of the server have changed, but makes the next
// call ask for them.
using ForwardDone = AttentionClient::Done;
PendingCall StartForward(const std::shared_ptr<RetryingChannel>& channel,
                         const std::shared_ptr<ServerLimits>& server,
                         const ForwardCall& call, const ClientOptions& options,
                         ForwardDone done);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_FORWARD_CALL_H_
