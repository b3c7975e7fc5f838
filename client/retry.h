// Whether and when a call that failed is made again, and what its caller reads
// in the end. Times and chance are given to it; knows no gRPC.
#ifndef ATTND_CLIENT_RETRY_H_
#define ATTND_CLIENT_RETRY_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/attention_client.h"

namespace attnd::client {

// When a call began, and when all its attempts together must be over. These
// times can be compared only with each other and with Now(): they are of a
// clock that goes on evenly when the system's clock is set.
struct CallTime {
  absl::Time start;
  absl::Time deadline;  // InfiniteFuture() where there is none

  static absl::Time Now();

  // The times of a call that begins now.
  static CallTime From(absl::Duration deadline);

  // What is left until the deadline; negative after it.
  absl::Duration Left() const { return deadline - Now(); }
};

// The attempts of one call.
class Retry {
 public:
  Retry(const RetryPolicy& policy, const CallTime& time);

  // To be called when an attempt failed with `status` at `now`, unless the
  // caller cancelled it. Returns the pause before the next attempt or, where
  // there is none, the error that the caller reads. `chance` is uniform in
  // [0, 1).
  absl::StatusOr<absl::Duration> AfterFailure(const absl::Status& status,
                                              absl::Time now, double chance);

  // The error of a call that its caller cancelled during a pause.
  absl::Status Cancelled() const;

 private:
  absl::Duration NextBackoff(double chance);

  const RetryPolicy policy_;
  const CallTime time_;
  absl::Duration backoff_;
  int attempts_ = 0;
  absl::Status last_;  // what the last attempt ended with
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_RETRY_H_
