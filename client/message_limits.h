// What a server takes in one message, and whether a call is one or is streamed.
// Knows neither gRPC nor how messages are encoded.
#ifndef ATTND_CLIENT_MESSAGE_LIMITS_H_
#define ATTND_CLIENT_MESSAGE_LIMITS_H_

#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/forward_request.h"
#include "client/outgoing_message.h"
#include "client/types.h"

namespace attnd::client {

// The most data that attnd.v1 allows in a chunk of a stream.
inline constexpr int64_t kMaxChunkBytes = int64_t{1} << 20;

// The largest message that a client of `max_message_bytes` must be able to
// receive. A server cuts a streamed answer into chunks by its own limit, not by
// the client's, so this is never less than a chunk and what surrounds it.
int64_t ReceiveLimit(int64_t max_message_bytes);

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

// Whether `request` goes as a message whatever the server says: it and its
// answer are such as every server takes, or only a message can hold them.
bool IsInline(const ForwardCall& call, const OutgoingMessage& request);

// Whether `request` and its answer are no messages for this server, which
// streams.
bool MustStream(const OutgoingMessage& request, const AttentionOutputs& outputs,
                const MessageLimits& limits, int64_t max_message_bytes);

// Whether a call may have failed because the server's limits are not what they
// were: gRPC refuses a message, or knows no such method, without a reason of
// attnd's.
bool MayHaveOtherLimits(const absl::Status& status);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_MESSAGE_LIMITS_H_
