// Converts gRPC's buffers, deadlines and statuses to the types of attnd, and
// back. gRPC does not parse the messages of any method, so that attnd itself
// can answer a message that does not parse with its own error. Files that
// include gRPC should do nothing else: they are slow to compile, and thread
// sanitizer cannot check them, because Debian's gRPC is built without it.
#ifndef ATTND_SERVER_RPC_RPC_ADAPTER_H_
#define ATTND_SERVER_RPC_RPC_ADAPTER_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/tile_scheduler.h"
#include "grpc/slice.h"
#include "grpc/support/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"
#include "server/access/access_control.h"
#include "server/calls/unary_answer.h"
#include "server/memory/message_quota.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::server {

// Moves the message out of `buffer`, which is empty afterwards. `quota` counts
// the bytes of the message as long as the result exists. Returns
// INVALID_ARGUMENT if `buffer` has no message, because the client ended its
// side of the stream before the message was complete.
absl::StatusOr<ReceivedMessage> TakeMessage(
    const grpc::ByteBuffer* buffer, const std::shared_ptr<MessageQuota>& quota);

// Finds out how many bytes of an outgoing message gRPC has already written to
// the socket. Thread-safe.
//
// gRPC keeps every slice (piece) of a message until it has sent the whole
// message, so it does not help to see when a slice is freed. However, gRPC
// holds a second reference to each slice that it has not sent yet, and drops
// that reference when the bytes are sent. gRPC has no function that returns the
// number of references. This class reads that number as the first word of the
// object to which a slice refers; rpc_adapter_test checks that this holds for
// the gRPC in use.
class SentSlices {
 public:
  // Returns how many bytes gRPC has sent of the message for which ToByteBuffer
  // was last called with this object. Call it only while the ByteBuffer of that
  // call exists. Counts only slices of kMinProgressBytes.
  int64_t bytes() const;

 private:
  friend grpc::ByteBuffer ToByteBuffer(OutgoingMessage message,
                                       SentSlices& sent);

  mutable std::mutex mutex_;
  std::vector<const grpc_slice_refcount*> slices_;
};

// Returns a buffer that refers to the bytes of `message`, without a copy. gRPC
// drops the owners of the bytes when it has sent them. Pieces larger than
// kMinProgressBytes are cut into slices of that size, so that `sent` can count
// them.
grpc::ByteBuffer ToByteBuffer(OutgoingMessage message, SentSlices& sent);

// Returns the status with which to finish `rpc`. Also adds the trailer
// `grpc-retry-pushback-ms` to `rpc`: the delay if `status` has a retry delay,
// or -1 if a resource is exhausted and waiting does not help. Proxies and
// gRPC's own retries use this trailer, but do not read RetryInfo.
grpc::Status ToGrpcStatus(const absl::Status& status,
                          grpc::ServerContextBase& rpc);

// Returns the deadline of a call, or SteadyTime::max() if the call has no
// deadline or one that is more than a year away.
SteadyTime DeadlineOf(const grpc::ServerContextBase& context);
// Converts a deadline in the same way from gRPC's own type. gRPC's conversion
// to a time point is wrong beyond 292 years, and a client may set such a
// deadline.
SteadyTime ToSteadyTime(gpr_timespec deadline);

// Returns the name under which the calls of a client count together: who it is
// (IdentityOf, to which `access` goes), or else the address of its host,
// without the port, so that all its connections have the same name. All clients
// of unix sockets without an identity have the name "unix", because gRPC does
// not know which process has connected.
std::string CallerName(const grpc::CallbackServerContext& rpc,
                       const AccessControl* access);
// Returns the caller that has `peer`, which is what gRPC calls the other end of
// a connection.
std::string CallerOfPeer(absl::string_view peer);
// Returns `peer` as other lines of the log write an address: gRPC encodes the
// brackets of an IPv6 address (%5B).
std::string PeerText(absl::string_view peer);
// Returns a number for CallerName, which Admission and JobOrder use. It differs
// from one run of the server to the next.
uint64_t CallerNumber(const grpc::CallbackServerContext& rpc,
                      const AccessControl* access);

// Ends `call` with CANCELLED and the text `why`, even if gRPC is waiting for
// the client. Thread-safe.
void CancelCall(grpc_call* call, const std::string& why);
// Returns a function that calls CancelCall for `rpc`. If it is called after the
// end of the rpc, it does nothing.
SendingRpc::BreakFn MakeBreak(grpc::CallbackServerContext& rpc);

}  // namespace attnd::server

#endif  // ATTND_SERVER_RPC_RPC_ADAPTER_H_
