#include "client/error_details.h"

#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "tests/client/error_status.h"
#include "tests/support/mutate.h"
#include "tests/support/numbers.h"

namespace attnd::client {
namespace {

ErrorDetails DetailsIn(const std::string& payload) {
  absl::Status status = absl::InternalError("x");
  status.SetPayload(kStatusPayloadUrl, absl::Cord(payload));
  return DetailsOf(status);
}

std::string PayloadOf(const absl::Status& status) {
  return std::string(*status.GetPayload(kStatusPayloadUrl));
}

// Joins all details in one text that can be compared.
std::string Text(const ErrorDetails& details) {
  std::string text = details.reason + "|" + details.domain;
  for (const FieldViolation& violation : details.field_violations) {
    text += "|" + violation.field + "|" + violation.description;
  }
  if (details.retry_delay) {
    text += "|" + absl::FormatDuration(*details.retry_delay);
  }
  return text;
}

std::string GoodPayload() {
  return SerializedRefusal("TOO_MANY_REQUESTS", "key.shape[1]",
                           "expected 2, got 3", absl::Milliseconds(1250));
}

TEST(ErrorDetailsTest, ReadsNothingFromAForeignStatus) {
  EXPECT_EQ(DetailsOf(absl::OkStatus()).reason, "");
  EXPECT_EQ(DetailsOf(absl::InternalError("x")).reason, "");
  EXPECT_EQ(Text(DetailsIn("\xff\xff not a message")), "|");
  EXPECT_EQ(Text(DetailsIn("")), "|");
}

TEST(ErrorDetailsTest, ReadsAllThatAServerSays) {
  const ErrorDetails details = DetailsIn(GoodPayload());
  EXPECT_EQ(details.reason, "TOO_MANY_REQUESTS");
  EXPECT_EQ(details.domain, "attnd");
  ASSERT_EQ(details.field_violations.size(), 1U);
  EXPECT_EQ(details.field_violations[0].field, "key.shape[1]");
  EXPECT_EQ(details.field_violations[0].description, "expected 2, got 3");
  EXPECT_EQ(details.retry_delay, absl::Milliseconds(1250));
}

TEST(ErrorDetailsTest, WritesWhatProtobufReads) {
  const absl::Status field = FieldError("query", "rank 2", "rank 5");
  EXPECT_EQ(field.message(), "query: expected rank 2, got rank 5");
  EXPECT_EQ(StatusByProtobuf(PayloadOf(field)),
            "3: query: expected rank 2, got rank 5");
  EXPECT_EQ(Text(DetailsByProtobuf(PayloadOf(field)).value()),
            "INVALID_FIELD|attnd.client|query|expected rank 2, got rank 5");

  const absl::Status reason =
      ReasonError(absl::StatusCode::kUnauthenticated, "WHY", "because");
  EXPECT_EQ(StatusByProtobuf(PayloadOf(reason)), "16: because");
  EXPECT_EQ(Text(DetailsByProtobuf(PayloadOf(reason)).value()),
            "WHY|attnd.client");

  EXPECT_EQ(Text(DetailsOf(field)), Text(*DetailsByProtobuf(PayloadOf(field))));
}

TEST(ErrorDetailsTest, ReadsWhatProtobufReadsFromMutatedBytes) {
  const std::string good = GoodPayload();
  std::mt19937_64 rng(kSeed);
  int compared = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string payload = good;
    Mutate(good, rng, payload);
    const ErrorDetails details = DetailsIn(payload);
    const std::optional<ErrorDetails> expected = DetailsByProtobuf(payload);
    if (!expected) continue;
    ++compared;
    ASSERT_EQ(Text(details), Text(*expected)) << absl::CEscape(payload);
  }
  EXPECT_GT(compared, 1000);
}

TEST(ErrorDetailsTest, ReadsWhatProtobufReadsFromTruncatedBytes) {
  const std::string good = GoodPayload();
  for (size_t size = 0; size < good.size(); ++size) {
    const std::string payload = good.substr(0, size);
    const ErrorDetails details = DetailsIn(payload);
    if (const auto expected = DetailsByProtobuf(payload)) {
      EXPECT_EQ(Text(details), Text(*expected)) << size;
    }
  }
}

}  // namespace
}  // namespace attnd::client
