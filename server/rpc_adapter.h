// Where gRPC's types end: its buffers, deadlines and statuses become attnd's
// and back. Every method is raw and comes through here, so that a message that
// does not parse gets attnd's answer. No logic lives in files that include
// gRPC: they are slow to compile and thread sanitizer cannot watch them.
#ifndef ATTND_SERVER_RPC_ADAPTER_H_
#define ATTND_SERVER_RPC_ADAPTER_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/tile_scheduler.h"
#include "grpc/support/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"
#include "server/message_quota.h"
#include "server/wire_message.h"

namespace attnd::server {

// Takes the slices out of `buffer`, which is left empty; they count for `quota`
// while they are there. INVALID_ARGUMENT where there is no message: the client
// has ended its side before the message was complete.
absl::StatusOr<ReceivedMessage> TakeMessage(
    const grpc::ByteBuffer* buffer, const std::shared_ptr<MessageQuota>& quota);

// A message that refers to the pieces' bytes; their owners are dropped when
// gRPC has sent them.
grpc::ByteBuffer ToByteBuffer(ResponsePieces pieces);

// What `rpc` is finished with. A retry delay also goes to its trailers, as
// `grpc-retry-pushback-ms`, and -1 where what is exhausted will not come back:
// proxies and gRPC's own retries act on that name, and do not read RetryInfo.
grpc::Status ToGrpcStatus(const absl::Status& status,
                          grpc::ServerContextBase& rpc);

// The call's deadline, or SteadyTime::max() where it has none, or one that is
// more than a year away.
SteadyTime DeadlineOf(const grpc::ServerContextBase& context);
// The same for a deadline as gRPC counts it. gRPC's own conversion to a time
// point is wrong beyond 292 years, which a client may ask for.
SteadyTime ToSteadyTime(gpr_timespec deadline);

}  // namespace attnd::server

#endif  // ATTND_SERVER_RPC_ADAPTER_H_
