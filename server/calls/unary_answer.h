// Watches over the answer of a call of one message, from the time when gRPC
// gets it until the client has read it. Knows no gRPC.
#ifndef ATTND_SERVER_CALLS_UNARY_ANSWER_H_
#define ATTND_SERVER_CALLS_UNARY_ANSWER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "core/tile_scheduler.h"
#include "server/calls/silence_watch.h"
#include "server/calls/stall_timer.h"

namespace attnd::server {

// What an answer needs from the rpc that sends it.
class SendingRpc {
 public:
  // Ends the rpc. The client gets the text if it ever reads again.
  using Break = std::function<void(const std::string& why)>;

  virtual ~SendingRpc() = default;
  // How many bytes of the answer have left the server, counted in steps of at
  // most kLeastMoveBytes.
  virtual int64_t sent_bytes() = 0;
  // Returns a Break that may also be called after the end of the rpc; it does
  // nothing then.
  virtual Break HoldToBreak() = 0;
};

// Ends a call whose client does not read the answer. Until the answer is sent,
// it holds memory and a share of the budget. Thread-safe.
class UnaryAnswer : public WatchedCall {
 public:
  using Clock = SteadyTime (*)();
  explicit UnaryAnswer(Clock clock = std::chrono::steady_clock::now)
      : clock_(clock) {}

  // Call it before the answer is handed to gRPC. `rpc` must live until Over.
  void Begin(SendingRpc& rpc);
  // Call it when the rpc is over, whether the client got the answer or not.
  void Over();

  void EndIfSilent(std::chrono::nanoseconds timeout) override;

 private:
  const Clock clock_;

  std::mutex mutex_;
  StallTimer timer_;
  SendingRpc* rpc_ = nullptr;  // null: no answer waits for the client
};

// The text for a client that has read too little of an answer for `timeout`.
std::string UnreadText(std::chrono::nanoseconds timeout);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_UNARY_ANSWER_H_
