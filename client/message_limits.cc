#include "client/message_limits.h"

#include <algorithm>
#include <string>

#include "client/error_details.h"

namespace attnd::client {
namespace {

// The most that a message of the server holds besides the elements of tensors,
// as the server counts it.
constexpr int64_t kEnvelopeBytes = 4096;

// The most that a message with the whole answer can have.
uint64_t AnswerBytes(const AttentionOutputs& outputs) {
  const uint64_t lse_bytes = outputs.lse ? outputs.lse->bytes().size() : 0;
  return outputs.output.bytes().size() + lse_bytes + kEnvelopeBytes;
}

MessageLimits LimitsOf(const ServerInfo& info) {
  return {.request_bytes = info.max_receive_message_bytes,
          .response_bytes = info.max_send_message_bytes,
          .streams = std::find(info.features.begin(), info.features.end(),
                               "stream") != info.features.end()};
}

}  // namespace

int64_t ReceiveLimit(int64_t max_message_bytes) {
  return std::max(max_message_bytes, kMaxChunkBytes + kEnvelopeBytes);
}

std::optional<MessageLimits> ServerLimits::Get() const {
  const std::lock_guard lock(mutex_);
  return limits_;
}

absl::StatusOr<MessageLimits> ServerLimits::Take(
    const absl::StatusOr<ServerInfo>& info) {
  const bool unknown = absl::IsUnimplemented(info.status());
  if (!info.ok() && !unknown) return info.status();
  const std::lock_guard lock(mutex_);
  limits_ = info.ok() ? LimitsOf(*info) : MessageLimits();
  return *limits_;
}

void ServerLimits::Forget() {
  const std::lock_guard lock(mutex_);
  limits_.reset();
}

bool IsInline(const ForwardCall& call, const OutgoingMessage& request) {
  constexpr uint64_t kSmallestLimitBytes = 64 << 10;
  return SharesMemory(call) ||
         std::max(request.size_bytes(), AnswerBytes(call.outputs)) <=
             kSmallestLimitBytes;
}

bool MustStream(const OutgoingMessage& request, const AttentionOutputs& outputs,
                const MessageLimits& limits, int64_t max_message_bytes) {
  const auto within = [&](uint64_t bytes, int64_t limit) {
    return bytes <= static_cast<uint64_t>(std::max<int64_t>(
                        std::min(limit, max_message_bytes), 0));
  };
  return limits.streams &&
         !(within(request.size_bytes(), limits.request_bytes) &&
           within(AnswerBytes(outputs), limits.response_bytes));
}

bool MayHaveOtherLimits(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) && !absl::IsUnimplemented(status)) {
    return false;
  }
  const std::string reason = DetailsOf(status).reason;
  return reason.empty() || reason == "MESSAGE_TOO_LARGE";
}

}  // namespace attnd::client
