// Decides whether a call is sent as one message or as a stream, by the limits
// of the server.
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

// Returns the size of the largest message that a client of `max_message_bytes`
// must be able to receive. A server cuts a streamed answer into chunks by its
// own limit, not by the client's, so this is never less than the message of a
// full chunk.
int64_t ReceiveLimit(int64_t max_message_bytes);

// The limits of a server, in ServerInfo's words.
struct MessageLimits {
  int64_t request_bytes = std::numeric_limits<int64_t>::max();
  int64_t response_bytes = std::numeric_limits<int64_t>::max();
  bool streams = false;

  friend bool operator==(const MessageLimits&, const MessageLimits&) = default;
};

// Remembers a server's limits. They are asked for once for all calls of a
// connection that are not small, and again if a call fails because another
// server has taken the place. Thread-safe.
class ServerLimits {
 public:
  std::optional<MessageLimits> Get() const;

  // Remembers and returns the answer of a server. A server that does not know
  // the method has no limits, and does not stream.
  absl::StatusOr<MessageLimits> Take(const absl::StatusOr<ServerInfo>& info);

  // Makes Get return nothing, so that the server is asked again.
  void Forget();

 private:
  mutable std::mutex mutex_;
  std::optional<MessageLimits> limits_;
};

// Returns whether `request` is sent as one message whatever the server's limits
// are. That is so if every server takes it and its answer, or if it refers to
// shared memory, which a stream cannot.
bool IsInline(const ForwardCall& call, const OutgoingMessage& request);

// Returns whether the server streams, and `request` or its answer is too large
// for a message.
bool MustStream(const OutgoingMessage& request, const AttentionOutputs& outputs,
                const MessageLimits& limits, int64_t max_message_bytes);

// Returns whether a call that failed with `status` may have failed because the
// server's limits have changed. gRPC refuses a message that is too large, and a
// method that the server lacks, without a reason of attnd's.
bool MayHaveOtherLimits(const absl::Status& status);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_MESSAGE_LIMITS_H_
