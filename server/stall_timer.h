// How long a client has been waited for, and whether it moves enough to be
// waited for any longer. Knows no gRPC.
#ifndef ATTND_SERVER_STALL_TIMER_H_
#define ATTND_SERVER_STALL_TIMER_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>

#include "core/tile_scheduler.h"

namespace attnd::server {

// A client that is waited for has to move so many bytes within each timeout, or
// to complete what it is waited for.
inline constexpr int64_t kLeastMoveBytes = int64_t{64} << 10;

// Counts the time in which one client is waited for, in one direction, since it
// last moved enough. The time in which the server itself is busy does not
// count. Used by one thread at a time.
class StallTimer {
 public:
  // The client is waited for from now on.
  void Start(SteadyTime now) { since_ = now; }
  // It is not waited for until the next Start.
  void Stop(SteadyTime now) {
    if (since_) waited_ += now - *since_;
    since_.reset();
  }
  // What the client was waited for is complete: the time begins anew.
  void Complete(SteadyTime now) {
    waited_ = {};
    if (since_) since_ = now;
  }
  // The client has moved `total_bytes`, of all or of the message that it is
  // waited for: the time begins anew where enough of them are new.
  void SawBytes(int64_t total_bytes, SteadyTime now) {
    counted_bytes_ = std::min(counted_bytes_, total_bytes);
    if (total_bytes - counted_bytes_ < kLeastMoveBytes) return;
    counted_bytes_ = total_bytes;
    Complete(now);
  }
  // Whether the client is waited for now, and has been for `timeout`.
  bool IsOver(SteadyTime now, std::chrono::nanoseconds timeout) const {
    return since_ && waited_ + (now - *since_) >= timeout;
  }

 private:
  std::optional<SteadyTime> since_;
  SteadyTime::duration waited_{};  // before `since_`
  int64_t counted_bytes_ = 0;      // at the last SawBytes that was enough
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_STALL_TIMER_H_
