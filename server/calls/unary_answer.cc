#include "server/calls/unary_answer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace attnd::server {

std::string UnreadText(std::chrono::nanoseconds timeout) {
  return absl::StrCat("the client read less than ", kMinProgressBytes,
                      " bytes of the answer in ",
                      absl::FormatDuration(absl::FromChrono(timeout)),
                      " (--stream-idle-timeout)");
}

void UnaryAnswer::Begin(SendingRpc& rpc) {
  const std::lock_guard lock(mutex_);
  rpc_ = &rpc;
  timer_.Start(clock_());
}

void UnaryAnswer::Over() {
  const std::lock_guard lock(mutex_);
  rpc_ = nullptr;
}

void UnaryAnswer::EndIfSilent(std::chrono::nanoseconds timeout) {
  SendingRpc::BreakFn end_rpc;
  {
    const std::lock_guard lock(mutex_);
    if (rpc_ == nullptr) return;
    const SteadyTime now = clock_();
    timer_.SawBytes(rpc_->sent_bytes(), now);
    if (!timer_.IsOver(now, timeout)) return;
    end_rpc = std::exchange(rpc_, nullptr)->MakeBreak();
  }
  // This runs without the lock, because gRPC may call Over before it returns.
  end_rpc(UnreadText(timeout));
}

}  // namespace attnd::server
