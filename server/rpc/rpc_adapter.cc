#include "server/rpc/rpc_adapter.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "base/field_error.h"
#include "grpc/grpc.h"
#include "grpcpp/support/slice.h"
#include "server/access/caller.h"
#include "server/status/status_convert.h"
#include "wire/message_sizes.h"
#include "wire/outgoing_message.h"
#include "wire/reasons.h"

namespace attnd::server {

namespace {

// A received message in gRPC's memory. The members are destroyed in reverse
// order, because `buffer` has to hold the last reference to that memory. When
// memory is short, gRPC 1.51 wakes waiters as memory is freed, and crashes if
// that happens in a thread that is not its own. gRPC prepares the thread when a
// buffer is freed, but not when a slice is freed.
struct Taken {
  MessageQuota::Held held;
  grpc::ByteBuffer buffer;
  std::vector<grpc::Slice> slices;  // short ones hold their bytes themselves
};

}  // namespace

absl::StatusOr<ReceivedMessage> TakeMessage(
    const grpc::ByteBuffer* buffer,
    const std::shared_ptr<MessageQuota>& quota) {
  // gRPC passes the message as const and keeps it until the call is over, which
  // is too long for a large tensor. This is gRPC's only reference to the
  // message, so it can be taken.
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
  std::shared_ptr<Taken> owner(
      new Taken{{quota, size_bytes}, {}, std::move(slices)});
  owner->buffer.Swap(&taken);
  std::vector<ReceivedMessage::Slice> views;
  views.reserve(owner->slices.size());
  for (const grpc::Slice& slice : owner->slices) {
    views.push_back(
        {{reinterpret_cast<const char*>(slice.begin()), slice.size()}});
  }
  return ReceivedMessage(std::move(views), std::move(owner));
}

int64_t SentSlices::bytes() const {
  // The ByteBuffer and the call hold one reference each. A slice that gRPC has
  // yet to send has one more.
  constexpr size_t kReferencesOfSent = 2;
  const std::lock_guard lock(mutex_);
  const auto sent = std::count_if(
      slices_.begin(), slices_.end(), [](const grpc_slice_refcount* slice) {
        return __atomic_load_n(reinterpret_cast<const size_t*>(slice),
                               __ATOMIC_RELAXED) == kReferencesOfSent;
      });
  return sent * kMinProgressBytes;
}

grpc::ByteBuffer ToByteBuffer(OutgoingMessage message, SentSlices& sent) {
  constexpr auto kSliceBytes = static_cast<size_t>(kMinProgressBytes);
  std::vector<OutgoingMessage::Piece> pieces = std::move(message).TakePieces();
  size_t whole_slices = 0;
  for (const OutgoingMessage::Piece& piece : pieces) {
    whole_slices += piece.bytes().size() / kSliceBytes;
  }
  std::vector<const grpc_slice_refcount*> watched;
  watched.reserve(whole_slices);
  std::vector<grpc::Slice> slices;
  slices.reserve(whole_slices + pieces.size());
  for (OutgoingMessage::Piece& piece : pieces) {
    const size_t count = (piece.bytes().size() + kSliceBytes - 1) / kSliceBytes;
    if (count == 0) continue;
    HeldPiece* const held = HeldPiece::Hold(std::move(piece), count);
    absl::string_view left = held->bytes();
    while (!left.empty()) {
      const absl::string_view part = left.substr(0, kSliceBytes);
      left.remove_prefix(part.size());
      const grpc_slice slice = grpc_slice_new_with_user_data(
          const_cast<char*>(part.data()), part.size(), HeldPiece::Drop, held);
      if (part.size() == kSliceBytes) watched.push_back(slice.refcount);
      slices.emplace_back(slice, grpc::Slice::STEAL_REF);
    }
  }
  const std::lock_guard lock(sent.mutex_);
  sent.slices_ = std::move(watched);
  return {slices.data(), slices.size()};
}

grpc::Status ToGrpcStatus(const absl::Status& status,
                          grpc::ServerContextBase& rpc) {
  const WireStatus wire = ToWireStatus(status);
  if (wire.retry_delay) {
    rpc.AddTrailingMetadata("grpc-retry-pushback-ms",
                            std::to_string(wire.retry_delay->count()));
  } else if (status.code() == absl::StatusCode::kResourceExhausted) {
    // The call will never fit, so a client must not retry it, even if its
    // policy is to retry this code.
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
  // This limit also keeps the sums below from overflowing.
  constexpr int64_t kYearSeconds = int64_t{365} * 24 * 3600;
  if (left.tv_sec >= kYearSeconds) return SteadyTime::max();
  if (left.tv_sec <= -kYearSeconds) return SteadyTime::min();
  return std::chrono::steady_clock::now() + std::chrono::seconds(left.tv_sec) +
         std::chrono::nanoseconds(left.tv_nsec);
}

std::string CallerOfPeer(absl::string_view peer) {
  if (absl::StartsWith(peer, "unix")) return "unix";
  // The colons of an IPv6 address are in brackets, and the port is behind them.
  return std::string(peer.substr(0, peer.rfind(':')));
}

std::string PeerText(absl::string_view peer) {
  return absl::StrReplaceAll(peer, {{"%5B", "["}, {"%5D", "]"}, {"%25", "%"}});
}

std::string CallerName(const grpc::CallbackServerContext& rpc,
                       const AccessControl* access) {
  if (const std::optional<std::string> identity = IdentityOf(rpc, access)) {
    // No address begins like this, so nobody can have the name of an address.
    return absl::StrCat("name:", *identity);
  }
  return CallerOfPeer(rpc.peer());
}

uint64_t CallerNumber(const grpc::CallbackServerContext& rpc,
                      const AccessControl* access) {
  return absl::Hash<std::string>()(CallerName(rpc, access));
}

void CancelCall(grpc_call* call, const std::string& why) {
  grpc_call_cancel_with_status(call, GRPC_STATUS_CANCELLED, why.c_str(),
                               nullptr);
}

SendingRpc::BreakFn MakeBreak(grpc::CallbackServerContext& rpc) {
  grpc_call_ref(rpc.c_call());
  const std::shared_ptr<grpc_call> call(rpc.c_call(), grpc_call_unref);
  return [call](const std::string& why) { CancelCall(call.get(), why); };
}

}  // namespace attnd::server
