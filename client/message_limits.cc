#include "client/message_limits.h"

#include <algorithm>
#include <string>

#include "client/error_details.h"
#include "wire/message_sizes.h"
#include "wire/reasons.h"

namespace attnd::client {
namespace {

// An upper bound of the size of a message with the whole answer.
uint64_t AnswerBytes(const AttentionOutputs& outputs) {
  const uint64_t lse_bytes = outputs.lse ? outputs.lse->bytes().size() : 0;
  return outputs.output.bytes().size() + lse_bytes + kMessageEnvelopeBytes;
}

MessageLimits LimitsOf(const ServerInfo& info) {
  return {.request_bytes = info.max_receive_message_bytes,
          .response_bytes = info.max_send_message_bytes,
          .streams = std::find(info.features.begin(), info.features.end(),
                               "stream") != info.features.end()};
}

}  // namespace

int64_t ReceiveLimit(int64_t max_message_bytes) {
  return std::max(max_message_bytes, kMaxChunkBytes + kMessageEnvelopeBytes);
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
  return SharesMemory(call) ||
         std::max(request.size_bytes(), AnswerBytes(call.outputs)) <=
             kMinMessageLimitBytes;
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
  return reason.empty() || reason == kMessageTooLarge;
}

}  // namespace attnd::client
