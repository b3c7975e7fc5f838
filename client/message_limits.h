// Decides whether a call is sent as one message or as a stream of chunks. That
// depends on the largest messages that the server and the client allow.
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

// Returns the size of the largest message that a client with the limit
// `max_message_bytes` accepts. It accepts at least the message of a full chunk,
// because the server cuts a streamed answer into chunks without knowing the
// client's limit.
int64_t ReceiveLimit(int64_t max_message_bytes);

// The sizes of the largest messages that a server accepts, as GetServerInfo
// reports them.
struct MessageLimits {
  int64_t request_bytes = std::numeric_limits<int64_t>::max();
  int64_t response_bytes = std::numeric_limits<int64_t>::max();
  bool streams = false;  // whether the server has AttentionStream

  friend bool operator==(const MessageLimits&, const MessageLimits&) = default;
};

// Remembers the message limits of a server, so that a client calls
// GetServerInfo only once and not before each call. If a later call fails in a
// way that suggests that the server was replaced by one with other limits
// (MayHaveOtherLimits), call Forget, and the client asks again. Calls that any
// server accepts as one message (IsInline) need none of this. Thread-safe.
class ServerLimits {
 public:
  // Returns the limits. If they are not known, returns nothing: call
  // GetServerInfo, and Take with its result.
  std::optional<MessageLimits> Get() const;

  // Remembers the limits in `info`, the result of GetServerInfo, and returns
  // them. If `info` is UNIMPLEMENTED, the server lacks that method; then
  // assumes that the server has no limits and does not stream. If `info` is
  // another error, returns it.
  absl::StatusOr<MessageLimits> Take(const absl::StatusOr<ServerInfo>& info);

  // Makes Get return nothing, so that the client asks the server again.
  void Forget();

 private:
  mutable std::mutex mutex_;
  std::optional<MessageLimits> limits_;
};

// Returns whether `request` can be sent as one message without knowing the
// limits of the server. It can if it and its answer are so small that every
// server accepts them. If it refers to shared memory, it has to be one message,
// because a stream cannot refer to shared memory.
bool IsInline(const ForwardCall& call, const OutgoingMessage& request);

// Returns whether `request` has to be streamed: the server has AttentionStream,
// and `request` or its answer is too large for one message.
bool MustStream(const OutgoingMessage& request, const AttentionOutputs& outputs,
                const MessageLimits& limits, int64_t max_message_bytes);

// Returns whether a call may have failed with `status` because the limits of
// the server are not those that the client remembers. That is so for
// RESOURCE_EXHAUSTED and UNIMPLEMENTED, if the reason is MESSAGE_TOO_LARGE or
// there is none: gRPC gives no reason when it refuses messages that are too
// large or methods that the server does not have.
bool MayHaveOtherLimits(const absl::Status& status);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_MESSAGE_LIMITS_H_
