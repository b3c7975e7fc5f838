// What forward and backward calls have in common when they send their request
// as one message and receive one message.
#ifndef ATTND_CLIENT_INLINE_CALL_H_
#define ATTND_CLIENT_INLINE_CALL_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/answer_reader.h"
#include "client/error_details.h"
#include "client/rpc_channel.h"
#include "wire/outgoing_message.h"
#include "wire/reasons.h"
#include "wire/received_message.h"

namespace attnd::client {

// Returns RESOURCE_EXHAUSTED if `message` is larger than `max_message_bytes`,
// the limit of the client. Call it before anything reads a tensor of the
// message.
inline absl::Status CheckSize(const OutgoingMessage& message,
                              int64_t max_message_bytes) {
  const uint64_t bytes = message.size_bytes();
  const auto limit = static_cast<uint64_t>(std::clamp<int64_t>(
      max_message_bytes, 0, std::numeric_limits<int>::max()));
  if (bytes <= limit) return absl::OkStatus();
  return ReasonError(
      absl::StatusCode::kResourceExhausted, kMessageTooLarge,
      absl::StrCat("request: expected at most ", limit,
                   " bytes (the client's max_message_bytes), got ", bytes));
}

// Handles the answer to an asynchronous call. `expected` says what the answer
// must be. Calls `done` once, with the result of ReadReply or with the error of
// the call.
template <typename Answer, typename Done>
class InlineCall final : public AsyncCall {
 public:
  InlineCall(Answer expected, Done done)
      : expected_(std::move(expected)), done_(std::move(done)) {}

  void OnDone(const absl::Status& status,
              const ReceivedMessage* answer) override {
    if (!status.ok()) return done_(status);
    done_(ReadReply(*answer, expected_));
  }

 private:
  Answer expected_;
  Done done_;
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_INLINE_CALL_H_
