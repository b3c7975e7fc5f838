// Whether and when a call that failed is made again, and what its caller reads
// in the end. Times and chance are given to it; knows no gRPC.
#ifndef ATTND_CLIENT_RETRY_H_
#define ATTND_CLIENT_RETRY_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/attention_client.h"

namespace attnd::client {

// When a call began, and when it has to be over: all its attempts together.
struct CallTime {
  absl::Time start;
  absl::Time deadline;  // InfiniteFuture() where there is none

  // Begins now.
  static CallTime From(absl::Duration deadline);
};

// The attempts of one call.
class Retry {
 public:
  Retry(const RetryPolicy& policy, const CallTime& time);

  // An attempt ended with `status` at `now`, which the caller did not ask for.
  // Answers the pause before the next attempt or, where there is none, the
  // error that the caller reads. `chance` is uniform in [0, 1).
  absl::StatusOr<absl::Duration> AfterFailure(const absl::Status& status,
                                              absl::Time now, double chance);

  // The error of a call that its caller gave up in a pause.
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
