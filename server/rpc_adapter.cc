#include "server/rpc_adapter.h"

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/field_error.h"
#include "grpcpp/support/slice.h"
#include "proto/message_pieces.h"
#include "server/reasons.h"
#include "server/status_convert.h"

namespace attnd::server {

namespace {

struct Taken {
  MessageQuota::Held held;  // goes after the slices
  std::vector<grpc::Slice> slices;
};

}  // namespace

absl::StatusOr<ReceivedMessage> TakeMessage(
    const grpc::ByteBuffer* buffer,
    const std::shared_ptr<MessageQuota>& quota) {
  // gRPC hands the message in as const, but owns no more than this reference,
  // and holds it until the call is over: too long for a large tensor.
  grpc::ByteBuffer taken;
  taken.Swap(const_cast<grpc::ByteBuffer*>(buffer));
  std::vector<grpc::Slice> slices;
  if (!taken.Valid() || !taken.Dump(&slices).ok()) {
    return WithReason(absl::InvalidArgumentError(
                          "the client ended the call before its message was "
                          "complete: expected one whole message, got none"),
                      kMalformedMessage);
  }
  const auto size_bytes = static_cast<int64_t>(taken.Length());
  taken.Clear();
  std::shared_ptr<Taken> owner(
      new Taken{{quota, size_bytes}, std::move(slices)});
  std::vector<absl::string_view> views;
  views.reserve(owner->slices.size());
  for (const grpc::Slice& slice : owner->slices) {
    views.emplace_back(reinterpret_cast<const char*>(slice.begin()),
                       slice.size());
  }
  return ReceivedMessage(std::move(views), std::move(owner));
}

grpc::ByteBuffer ToByteBuffer(ResponsePieces pieces) {
  std::vector<grpc::Slice> slices;
  slices.reserve(pieces.size());
  for (ResponsePiece& piece : pieces) {
    slices.emplace_back(const_cast<char*>(piece.bytes.data()),
                        piece.bytes.size(), Drop, Hold(std::move(piece.owner)));
  }
  return {slices.data(), slices.size()};
}

grpc::Status ToGrpcStatus(const absl::Status& status,
                          grpc::ServerContextBase& rpc) {
  const WireStatus wire = ToWireStatus(status);
  if (wire.retry_delay) {
    rpc.AddTrailingMetadata("grpc-retry-pushback-ms",
                            std::to_string(wire.retry_delay->count()));
  } else if (status.code() == absl::StatusCode::kResourceExhausted) {
    // Will never fit: a client whose policy retries this code shall not.
    rpc.AddTrailingMetadata("grpc-retry-pushback-ms", "-1");
  }
  return {static_cast<grpc::StatusCode>(wire.code), wire.message, wire.details};
}

SteadyTime DeadlineOf(const grpc::ServerContextBase& context) {
  return ToSteadyTime(context.raw_deadline());
}

SteadyTime ToSteadyTime(gpr_timespec deadline) {
  const gpr_timespec left =
      gpr_time_sub(deadline, gpr_now(deadline.clock_type));
  // This also keeps the sums below from overflowing.
  constexpr int64_t kYearSeconds = int64_t{365} * 24 * 3600;
  if (left.tv_sec >= kYearSeconds) return SteadyTime::max();
  if (left.tv_sec <= -kYearSeconds) return SteadyTime::min();
  return std::chrono::steady_clock::now() + std::chrono::seconds(left.tv_sec) +
         std::chrono::nanoseconds(left.tv_nsec);
}

}  // namespace attnd::server
