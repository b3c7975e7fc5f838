#include "client/retry.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "client/error_details.h"

namespace attnd::client {
namespace {

// Calls that are repeated after shorter pauses would keep a processor busy.
constexpr absl::Duration kMinPause = absl::Milliseconds(1);

// The largest share by which a random factor makes a backoff longer or shorter,
// so that callers that failed at the same time do not try again at the same
// time. It equals the share that gRPC uses in its own retries.
constexpr double kJitter = 0.2;

// Returns the delay that the server asks for, or zero if it asks for none.
// Returns nullopt if another attempt would fail with the same error.
std::optional<absl::Duration> DelayBeforeNext(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:  // by a server that shuts down
      return DetailsOf(status).retry_delay.value_or(absl::ZeroDuration());
    case absl::StatusCode::kResourceExhausted:
      return DetailsOf(status).retry_delay;
    default:
      return std::nullopt;
  }
}

absl::Status WithMessage(const absl::Status& status,
                         absl::string_view message) {
  absl::Status result(status.code(), message);
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    result.SetPayload(url, payload);
  });
  return result;
}

std::string CodeAndMessage(const absl::Status& status) {
  return absl::StrCat(absl::StatusCodeToString(status.code()), ": ",
                      status.message());
}

}  // namespace

absl::Time CallTime::Now() {
  return absl::UnixEpoch() +
         absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

CallTime CallTime::From(absl::Duration deadline) {
  const absl::Time now = Now();
  return {.start = now, .deadline = now + deadline};
}

Retry::Retry(const RetryPolicy& policy, const CallTime& time)
    : policy_(policy), time_(time), backoff_(policy.initial_backoff) {}

absl::StatusOr<absl::Duration> Retry::AfterFailure(const absl::Status& status,
                                                   absl::Time now,
                                                   double random) {
  ++attempts_;
  const absl::Status before = std::exchange(last_error_, status);
  if (absl::IsDeadlineExceeded(status) && attempts_ > 1) {
    return WithMessage(
        status, absl::StrCat(status.message(), " (in attempt ", attempts_,
                             "; the one before it failed with ",
                             CodeAndMessage(before), ")"));
  }
  const std::optional<absl::Duration> delay = DelayBeforeNext(status);
  if (!delay) return status;
  const bool may_try =
      policy_.max_attempts <= 0 || attempts_ < policy_.max_attempts;
  const absl::Duration pause =
      std::max(*delay, absl::ZeroDuration()) + NextBackoff(random);
  if (may_try && now + pause < time_.deadline) return pause;
  if (attempts_ == 1) return status;
  return WithMessage(
      status,
      absl::StrCat(status.message(), " (tried ", attempts_, " times within ",
                   absl::FormatDuration(
                       absl::Trunc(now - time_.start, absl::Milliseconds(1))),
                   may_try ? "; the deadline leaves no time to try again)"
                           : ", the most that max_attempts allows)"));
}

absl::Status Retry::CancelledError() const {
  return absl::CancelledError(absl::StrCat(
      "the caller cancelled the call before attempt ", attempts_ + 1,
      "; the one before it failed with ", CodeAndMessage(last_error_)));
}

absl::Duration Retry::NextBackoff(double random) {
  const absl::Duration backoff =
      std::max(std::min(backoff_, policy_.max_backoff), kMinPause);
  // A multiplier below 1 would make the backoff shorter, so it counts as 1.
  backoff_ = backoff * (policy_.multiplier > 1 ? policy_.multiplier : 1);
  return backoff * (1 - kJitter + 2 * kJitter * random);
}

}  // namespace attnd::client
