// Decides whether a call is sent as one message or as a stream. This depends on
// the limits of the server and of the client.
#ifndef ATTND_CLIENT_MESSAGE_LIMITS_H_
#define ATTND_CLIENT_MESSAGE_LIMITS_H_

#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/forward_request.h"
#include "client/types.h"
#include "wire/outgoing_message.h"

namespace attnd::client {

// Returns the size of the largest message that a client must be able to receive
// if its limit is `max_message_bytes`. This is never less than the message of a
// full chunk, because the size of the chunks of a streamed answer depends on
// the limit of the server and not on that of the client.
int64_t ReceiveLimit(int64_t max_message_bytes);

// The limits of a server, as its ServerInfo reports them.
struct MessageLimits {
  int64_t request_bytes = std::numeric_limits<int64_t>::max();
  int64_t response_bytes = std::numeric_limits<int64_t>::max();
  bool streams = false;  // whether the server has AttentionStream

  friend bool operator==(const MessageLimits&, const MessageLimits&) = default;
};

// Remembers the limits of a server, so that the client asks for them only once
// for all calls of a connection. The client asks again if a call fails because
// another server may have replaced this one. Small calls need no limits.
// Thread-safe.
class ServerLimits {
 public:
  // Returns the limits, or nothing if the server has to be asked.
  std::optional<MessageLimits> Get() const;

  // Remembers the limits in `info`, the result of GetServerInfo, and returns
  // them. If the result is UNIMPLEMENTED, assumes that the server has no limits
  // and does not stream. Returns any other error.
  absl::StatusOr<MessageLimits> Take(const absl::StatusOr<ServerInfo>& info);

  // Makes Get return nothing, so that the client asks the server again.
  void Forget();

 private:
  mutable std::mutex mutex_;
  std::optional<MessageLimits> limits_;
};

// Returns whether `request` can be sent as one message without knowing the
// limits of the server. It can if it and its answer are so small that every
// server allows them. It must if it refers to shared memory, because a stream
// cannot do that.
bool IsInline(const ForwardCall& call, const OutgoingMessage& request);

// Returns whether `request` has to be streamed: the server has AttentionStream,
// and `request` or its answer is too large for one message.
bool MustStream(const OutgoingMessage& request, const AttentionOutputs& outputs,
                const MessageLimits& limits, int64_t max_message_bytes);

// Returns whether a call that failed with `status` may have failed because the
// limits of the server have changed. That is so if the reason is
// MESSAGE_TOO_LARGE. It is also so if there is no reason, because gRPC itself
// refuses messages that are too large and methods that the server does not
// have.
bool MayHaveOtherLimits(const absl::Status& status);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_MESSAGE_LIMITS_H_
