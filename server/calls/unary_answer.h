// Ends a call with one message each way if its client does not read the answer
// in time. Does not use gRPC.
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

// An rpc that is sending its answer. The reactors in server/rpc/ implement it.
class SendingRpc {
 public:
  // A function that ends an rpc. `why` is the error text for the client, which
  // gets it only if it reads again.
  using BreakFn = std::function<void(const std::string& why)>;

  virtual ~SendingRpc() = default;
  // Returns how many bytes of the answer gRPC has written to the socket, in
  // steps of at most kMinProgressBytes.
  virtual int64_t sent_bytes() = 0;
  // Returns a function that ends this rpc. It may outlive the rpc; after the
  // end of the rpc, it does nothing.
  virtual BreakFn MakeBreak() = 0;
};

// Ends a call whose client does not read its answer in time. Watches the answer
// from when it is handed to gRPC until it is sent, because all that time it
// holds memory and a part of the memory budget. Thread-safe.
class UnaryAnswer : public WatchedCall {
 public:
  using Clock = SteadyTime (*)();
  explicit UnaryAnswer(Clock clock = std::chrono::steady_clock::now)
      : clock_(clock) {}

  // Call it before the answer is handed to gRPC. `rpc` must live until Over.
  void Begin(SendingRpc& rpc);
  // Call it when the rpc is over, whether or not the client got the answer.
  void Over();

  void EndIfSilent(std::chrono::nanoseconds timeout) override;

 private:
  const Clock clock_;

  std::mutex mutex_;
  StallTimer timer_;
  SendingRpc* rpc_ = nullptr;  // null: no answer waits for the client
};

// Returns the error text for a client that has read less than kMinProgressBytes
// of an answer within `timeout`.
std::string UnreadText(std::chrono::nanoseconds timeout);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_UNARY_ANSWER_H_
