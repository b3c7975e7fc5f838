// Where gRPC's types end: its buffers, deadlines and statuses become attnd's
// and back. Every method is raw and comes through here, so that a message that
// does not parse gets attnd's answer. No logic lives in files that include
// gRPC: they are slow to compile and thread sanitizer cannot watch them.
#ifndef ATTND_SERVER_RPC_RPC_ADAPTER_H_
#define ATTND_SERVER_RPC_RPC_ADAPTER_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/tile_scheduler.h"
#include "grpc/slice.h"
#include "grpc/support/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"
#include "server/calls/unary_answer.h"
#include "server/memory/message_quota.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::server {

// Takes the slices out of `buffer`, which is left empty; they count for `quota`
// while they are there. INVALID_ARGUMENT if there is no message, because the
// client ended its side before the message was complete.
absl::StatusOr<ReceivedMessage> TakeMessage(
    const grpc::ByteBuffer* buffer, const std::shared_ptr<MessageQuota>& quota);

// Says how much of a message has left the server. Thread-safe.
//
// gRPC keeps every slice of a message until the whole message is sent, so it
// does not help to see when a slice is freed. But gRPC takes another reference
// to each slice that is still to be sent, and drops it when the bytes are sent.
// gRPC has no function that returns the number of references. It is the first
// word of what a slice refers to; rpc_adapter_test checks that for the gRPC in
// use.
class SentSlices {
 public:
  // How many bytes have left of the message that ToByteBuffer made last. Call
  // it only while that ByteBuffer exists. Counts only slices of
  // kLeastMoveBytes.
  int64_t bytes() const;

 private:
  friend grpc::ByteBuffer ToByteBuffer(OutgoingMessage message,
                                       SentSlices& sent);

  mutable std::mutex mutex_;
  std::vector<const grpc_slice_refcount*> slices_;
};

// Returns a buffer that refers to the bytes of `message` and drops their owners
// when gRPC has sent them. Pieces larger than kLeastMoveBytes are cut into
// slices of that size, which `sent` counts.
grpc::ByteBuffer ToByteBuffer(OutgoingMessage message, SentSlices& sent);

// What `rpc` is finished with. A retry delay also goes to its trailers, as
// `grpc-retry-pushback-ms`, and -1 where what is exhausted will not come back:
// proxies and gRPC's own retries act on that name, and do not read RetryInfo.
grpc::Status ToGrpcStatus(const absl::Status& status,
                          grpc::ServerContextBase& rpc);

// The call's deadline, or SteadyTime::max() if it has none or if it is more
// than a year away.
SteadyTime DeadlineOf(const grpc::ServerContextBase& context);
// The same for a deadline of gRPC's own type. gRPC's conversion to a time point
// is wrong beyond 292 years, and a client may ask for more.
SteadyTime ToSteadyTime(gpr_timespec deadline);

// Ends `call` with CANCELLED and the text `why`, whatever the call waits for.
// Thread-safe.
void CancelCall(grpc_call* call, const std::string& why);
// Returns a function that does the same for `rpc`. It may also be called after
// the end of the rpc, and does nothing then.
SendingRpc::Break HoldToBreak(grpc::CallbackServerContext& rpc);

}  // namespace attnd::server

#endif  // ATTND_SERVER_RPC_RPC_ADAPTER_H_
