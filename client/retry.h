// Decides whether and when a failed call is repeated, and which error its
// caller gets in the end. The caller passes in the time and the random numbers,
// so that tests can choose them. Does not use gRPC.
#ifndef ATTND_CLIENT_RETRY_H_
#define ATTND_CLIENT_RETRY_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/attention_client.h"

namespace attnd::client {

// Says when a call began, and by when all its attempts must be over. Compare
// these times only with each other and with CallTime::Now(), because they are
// times of a monotonic clock, which does not jump when the system's clock is
// set.
struct CallTime {
  absl::Time start;
  absl::Time deadline;  // InfiniteFuture() if the call has no deadline

  // Returns the current time of the monotonic clock.
  static absl::Time Now();

  // Returns the times of a call that begins now and may take `deadline`.
  static CallTime From(absl::Duration deadline);

  // Returns the time until the deadline. It is negative after the deadline.
  absl::Duration Left() const { return deadline - Now(); }
};

// Decides after each failed attempt of a call whether another one follows. Make
// one object for each call. Not thread-safe.
class Retry {
 public:
  Retry(const RetryPolicy& policy, const CallTime& time);

  // Call this when an attempt has failed with `status` at the time `now`,
  // unless the caller cancelled the call. Returns the pause before the next
  // attempt. If there must be no other attempt, returns the error that the
  // caller of the call gets. `random` is uniformly distributed in [0, 1).
  absl::StatusOr<absl::Duration> AfterFailure(const absl::Status& status,
                                              absl::Time now, double random);

  // Returns the error of a call that its caller cancelled during a pause.
  absl::Status CancelledError() const;

 private:
  absl::Duration NextBackoff(double random);

  const RetryPolicy policy_;
  const CallTime time_;
  absl::Duration backoff_;
  int attempts_ = 0;
  absl::Status last_error_;
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_RETRY_H_
