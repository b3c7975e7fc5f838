// The answer of a call of one message, from where gRPC has it until the client
// has taken it. Knows no gRPC.
#ifndef ATTND_SERVER_UNARY_ANSWER_H_
#define ATTND_SERVER_UNARY_ANSWER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "core/tile_scheduler.h"
#include "server/silence_watch.h"
#include "server/stall_timer.h"

namespace attnd::server {

// What an answer needs of the rpc that it is sent by.
class SendingRpc {
 public:
  // Ends the rpc; the text is for the client, should it ever read again.
  using Break = std::function<void(const std::string& why)>;

  virtual ~SendingRpc() = default;
  // How much of the answer has left the server, counted in steps of
  // kLeastMoveBytes or less.
  virtual int64_t sent_bytes() = 0;
  // Makes a Break that may be called when the rpc is over, and does nothing
  // then.
  virtual Break HoldToBreak() = 0;
};

// Ends a call whose client does not take the answer, which holds its memory and
// its share of the budget until it is sent. Thread-safe.
class UnaryAnswer : public WatchedCall {
 public:
  using Clock = SteadyTime (*)();
  explicit UnaryAnswer(Clock clock = std::chrono::steady_clock::now)
      : clock_(clock) {}

  // Before the answer is handed to gRPC. Uses `rpc` until Over.
  void Begin(SendingRpc& rpc);
  // The rpc is over: the client has the answer, or will never have it.
  void Over();

  void EndIfSilent(std::chrono::nanoseconds timeout) override;

 private:
  const Clock clock_;

  std::mutex mutex_;
  StallTimer timer_;
  SendingRpc* rpc_ = nullptr;  // null: nobody waits for the client
};

// What a client reads that has taken too little of an answer for `timeout`.
std::string UnreadText(std::chrono::nanoseconds timeout);

}  // namespace attnd::server

#endif  // ATTND_SERVER_UNARY_ANSWER_H_
