#include "base/field_error.h"

#include <gtest/gtest.h>

#include "absl/status/status.h"

namespace attnd {
namespace {

TEST(FieldErrorTest, NamesFieldExpectedAndGot) {
  const absl::Status status = FieldError("key.shape[3]", "64", "32");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "key.shape[3]: expected 64, got 32");
  EXPECT_EQ(FieldOf(status), "key.shape[3]");
  EXPECT_EQ(ReasonOf(status), std::nullopt);
  EXPECT_EQ(ExpectedGot("64", "32"), "expected 64, got 32");
}

TEST(FieldErrorTest, OtherStatusesNameNoField) {
  EXPECT_EQ(FieldOf(absl::OkStatus()), std::nullopt);
  EXPECT_EQ(FieldOf(absl::InternalError("key.shape: no")), std::nullopt);
}

TEST(FieldErrorTest, AnEmptyPathIsAPath) {
  EXPECT_EQ(FieldOf(FieldError("", "a message that parses", "noise")), "");
}

TEST(FieldErrorTest, KeepsTheReasonAndTheField) {
  const absl::Status status =
      WithReason(FieldError("query.shape", "less", "more"), kInt64RangeReason);
  EXPECT_EQ(ReasonOf(status), "INT64_RANGE");
  EXPECT_EQ(FieldOf(status), "query.shape");
  EXPECT_EQ(status.message(), "query.shape: expected less, got more");
}

TEST(FieldErrorTest, RenamesTheFieldInPathAndMessage) {
  const absl::Status status = WithField(
      WithReason(FieldError("query.shape[2]", ">= 0", "-1"), "SOME_REASON"),
      "sequence.shape[2]");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "sequence.shape[2]: expected >= 0, got -1");
  EXPECT_EQ(FieldOf(status), "sequence.shape[2]");
  EXPECT_EQ(ReasonOf(status), "SOME_REASON");
}

TEST(FieldErrorTest, WritesShapes) {
  EXPECT_EQ(ShapeText({2, 64}), "[2, 64]");
  EXPECT_EQ(ShapeText({}), "[]");
}

TEST(FieldErrorTest, LeavesAStatusWithoutFieldAlone) {
  const absl::Status status = absl::ResourceExhaustedError("full");
  EXPECT_EQ(WithField(status, "query"), status);
  EXPECT_EQ(WithField(absl::OkStatus(), "query"), absl::OkStatus());
}

}  // namespace
}  // namespace attnd
