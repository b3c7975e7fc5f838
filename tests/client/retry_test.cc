#include "client/retry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "client/default_service_config.h"
#include "client/error_details.h"
#include "tests/client/error_status.h"

namespace attnd::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kNoJitter = 0.5;

constexpr absl::Time kStart = absl::FromUnixSeconds(1'000'000);

CallTime Within(absl::Duration deadline) {
  return {.start = kStart, .deadline = kStart + deadline};
}

absl::Status WithDelay(absl::StatusCode code, absl::Duration delay) {
  absl::Status status(code, "busy");
  status.SetPayload(
      kStatusPayloadUrl,
      absl::Cord(SerializedRefusal("TOO_MANY_REQUESTS", "", "busy", delay)));
  return status;
}

// The pauses between the attempts of a call that fail at once, and its error.
struct Course {
  std::vector<absl::Duration> pauses;
  absl::Status error;
};

Course RunCourse(const RetryPolicy& policy, absl::Duration deadline,
                 const absl::Status& failure, int attempts = 1000) {
  Retry retry(policy, Within(deadline));
  Course course;
  absl::Time now = kStart;
  for (int i = 0; i < attempts; ++i) {
    const auto pause = retry.AfterFailure(failure, now, kNoJitter);
    if (!pause.ok()) {
      course.error = pause.status();
      break;
    }
    course.pauses.push_back(*pause);
    now += *pause;
  }
  return course;
}

// Parses a duration in the JSON format of a service config.
absl::Duration Seconds(const nlohmann::json& json) {
  absl::Duration duration;
  EXPECT_TRUE(absl::ParseDuration(json.get<std::string>(), &duration));
  return duration;
}

TEST(RetryPolicyTest, IsTheOneOfTheServiceConfig) {
  std::ifstream file(ATTND_SERVICE_CONFIG);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(kDefaultServiceConfig, text.str());

  const nlohmann::json config = nlohmann::json::parse(text.str());
  const nlohmann::json policy =
      config.at("methodConfig").at(0).at("retryPolicy");
  const RetryPolicy ours;
  EXPECT_EQ(Seconds(policy.at("initialBackoff")), ours.initial_backoff);
  EXPECT_EQ(Seconds(policy.at("maxBackoff")), ours.max_backoff);
  EXPECT_EQ(policy.at("backoffMultiplier"), ours.multiplier);
  // CANCELLED is missing, because gRPC in other programs cannot tell who
  // cancelled a call.
  EXPECT_THAT(policy.at("retryableStatusCodes"),
              ElementsAre("UNAVAILABLE", "RESOURCE_EXHAUSTED"));
}

TEST(RetryTest, PausesGrowToTheLongest) {
  const Course course =
      RunCourse({}, absl::Seconds(10), absl::UnavailableError(""));
  std::vector<int64_t> pauses_ms;
  pauses_ms.reserve(course.pauses.size());
  for (const absl::Duration pause : course.pauses) {
    pauses_ms.push_back(absl::ToInt64Milliseconds(pause));
  }
  EXPECT_THAT(pauses_ms,
              ElementsAre(100, 200, 400, 800, 1600, 2000, 2000, 2000));
}

TEST(RetryTest, APauseVariesByAFifth) {
  const absl::Status failure = absl::UnavailableError("");
  EXPECT_EQ(
      *Retry({}, Within(absl::Seconds(10))).AfterFailure(failure, kStart, 0),
      absl::Milliseconds(80));
  EXPECT_GT(*Retry({}, Within(absl::Seconds(10)))
                 .AfterFailure(failure, kStart, 0.999),
            absl::Milliseconds(119));
}

TEST(RetryTest, ABackoffComesOnTopOfTheServersDelay) {
  const absl::Status busy =
      WithDelay(absl::StatusCode::kResourceExhausted, absl::Seconds(3));
  EXPECT_THAT(RunCourse({}, absl::Seconds(10), busy, 2).pauses,
              ElementsAre(absl::Milliseconds(3100), absl::Milliseconds(3200)));
  // The same holds for a delay that makes no sense.
  const absl::Status past =
      WithDelay(absl::StatusCode::kUnavailable, -absl::Hours(1));
  EXPECT_THAT(RunCourse({}, absl::Seconds(10), past, 1).pauses,
              ElementsAre(absl::Milliseconds(100)));
  const absl::Status never =
      WithDelay(absl::StatusCode::kUnavailable, absl::Hours(1'000'000));
  EXPECT_EQ(RunCourse({}, absl::Seconds(10), never).error, never);
}

TEST(RetryTest, WhatWillNotPassIsTheCallsErrorAtOnce) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status failure(static_cast<absl::StatusCode>(code), "text");
    const bool passes =
        absl::IsUnavailable(failure) || absl::IsCancelled(failure);
    const Course course = RunCourse({}, absl::Seconds(10), failure, 1);
    EXPECT_EQ(course.pauses.size(), passes ? 1U : 0U) << failure;
    EXPECT_EQ(course.error, passes ? absl::OkStatus() : failure);
  }
}

TEST(RetryTest, TheLastErrorSaysHowOftenItWasTried) {
  const absl::Status busy =
      WithDelay(absl::StatusCode::kResourceExhausted, absl::ZeroDuration());
  const Course course = RunCourse({}, absl::Seconds(2), busy);
  EXPECT_EQ(course.error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(
      course.error.message(),
      "busy (tried 5 times within 1.5s; the deadline leaves no time to try "
      "again)");
  EXPECT_EQ(DetailsOf(course.error).reason, "TOO_MANY_REQUESTS");
  EXPECT_EQ(DetailsOf(course.error).retry_delay, absl::ZeroDuration());
}

TEST(RetryTest, ADeadlineDoesNotHideWhatFailedBefore) {
  Retry retry({}, Within(absl::Seconds(10)));
  ASSERT_TRUE(
      retry.AfterFailure(absl::UnavailableError("no server"), kStart, 0).ok());
  const absl::Status error =
      retry
          .AfterFailure(absl::DeadlineExceededError("Deadline Exceeded"),
                        kStart + absl::Seconds(10), 0)
          .status();
  EXPECT_EQ(error.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(error.message(),
            "Deadline Exceeded (in attempt 2; the one before it failed with "
            "UNAVAILABLE: no server)");
}

TEST(RetryTest, ACallThatIsGivenUpSaysWhatFailedBefore) {
  Retry retry({}, Within(absl::Seconds(10)));
  ASSERT_TRUE(
      retry.AfterFailure(absl::UnavailableError("no server"), kStart, 0).ok());
  EXPECT_EQ(retry.CancelledError().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(retry.CancelledError().message(),
              HasSubstr("before attempt 2; the one before it failed with "
                        "UNAVAILABLE: no server"));
}

TEST(RetryTest, MaxAttemptsCountsTheFirst) {
  const absl::Status failure = absl::UnavailableError("no server");
  const Course once =
      RunCourse({.max_attempts = 1}, absl::InfiniteDuration(), failure);
  EXPECT_TRUE(once.pauses.empty());
  EXPECT_EQ(once.error, failure);
  const Course thrice =
      RunCourse({.max_attempts = 3}, absl::InfiniteDuration(), failure);
  EXPECT_EQ(thrice.pauses.size(), 2U);
  EXPECT_EQ(thrice.error.message(),
            "no server (tried 3 times within 300ms, the most that max_attempts "
            "allows)");
}

TEST(RetryTest, WithoutADeadlineThereIsAlwaysAnotherAttempt) {
  const Course course =
      RunCourse({}, absl::InfiniteDuration(), absl::UnavailableError(""));
  EXPECT_EQ(course.pauses.size(), 1000U);
  EXPECT_TRUE(course.error.ok());
}

TEST(RetryTest, NoPolicyIsABusyLoopOrAnEndlessPause) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const RetryPolicy& policy : std::vector<RetryPolicy>{
           {.initial_backoff = absl::ZeroDuration()},
           {.initial_backoff = -absl::InfiniteDuration()},
           {.initial_backoff = absl::InfiniteDuration()},
           {.max_backoff = -absl::Seconds(1)},
           {.multiplier = 0},
           {.multiplier = -1},
           {.multiplier = nan},
           {.multiplier = std::numeric_limits<double>::infinity()}}) {
    const Course course = RunCourse(policy, absl::InfiniteDuration(),
                                    absl::UnavailableError(""), 50);
    ASSERT_EQ(course.pauses.size(), 50U);
    for (const absl::Duration pause : course.pauses) {
      EXPECT_GE(pause, absl::Milliseconds(1));
      EXPECT_LE(pause, absl::Seconds(2));
    }
  }
}

}  // namespace
}  // namespace attnd::client
