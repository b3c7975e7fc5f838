// Measures how long the server has been waiting for a client, and says when
// that is too long. Does not use gRPC.
#ifndef ATTND_SERVER_CALLS_STALL_TIMER_H_
#define ATTND_SERVER_CALLS_STALL_TIMER_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>

#include "core/tile_scheduler.h"
#include "wire/message_sizes.h"

namespace attnd::server {

// Adds up the time that the server has waited for one client, either to send or
// to read, since the client last sent or read kMinProgressBytes. Time in which
// the server itself is busy does not count. Not thread-safe.
class StallTimer {
 public:
  // Call this when the server begins to wait for the client.
  void Start(SteadyTime now) { since_ = now; }
  // Call this when the server no longer waits for the client.
  void Stop(SteadyTime now) {
    if (since_) waited_ += now - *since_;
    since_.reset();
  }
  // Call this when the client has completed the message that the server waited
  // for. The time starts again at 0.
  void Complete(SteadyTime now) {
    waited_ = {};
    if (since_) since_ = now;
  }
  // Call this with the number of bytes that the client has sent or read so far,
  // either in total or of the current message. Each time that another
  // kMinProgressBytes are complete, the time starts again at 0.
  void SawBytes(int64_t total_bytes, SteadyTime now) {
    counted_bytes_ = std::min(counted_bytes_, total_bytes);
    if (total_bytes - counted_bytes_ < kMinProgressBytes) return;
    counted_bytes_ = total_bytes;
    Complete(now);
  }
  // Returns whether the server is waiting for the client at `now`, and has
  // waited for `timeout` in total since the time last started at 0.
  bool IsOver(SteadyTime now, std::chrono::nanoseconds timeout) const {
    return since_ && waited_ + (now - *since_) >= timeout;
  }

 private:
  std::optional<SteadyTime> since_;  // when the current wait began
  SteadyTime::duration waited_{};    // in earlier waits
  int64_t counted_bytes_ = 0;        // when bytes last restarted the time
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_STALL_TIMER_H_
