// The forward methods: one message each way, or AttentionStream for what is too
// large for that. Knows protobuf, not gRPC.
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

absl::StatusOr<ServerInfo> AskServer(const RetryingChannel& channel,
                                     const CallTime& time);

// Waits for the answer.
absl::StatusOr<AttentionReply> CallForward(const RetryingChannel& channel,
                                           ServerLimits& server,
                                           const ForwardCall& call,
                                           const ClientOptions& options);

// Calls `done` once, in this thread where the call cannot be made.
using ForwardDone = AttentionClient::Done;
PendingCall StartForward(const std::shared_ptr<RetryingChannel>& channel,
                         const std::shared_ptr<ServerLimits>& server,
                         const ForwardCall& call, const ClientOptions& client,
                         ForwardDone done);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_FORWARD_CALL_H_
