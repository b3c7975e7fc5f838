#include "client/error_details.h"

#include <gtest/gtest.h>

#include "absl/strings/cord.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace attnd::client {
namespace {

TEST(ErrorDetailsTest, ReadsNothingFromAForeignStatus) {
  EXPECT_EQ(DetailsOf(absl::OkStatus()).reason, "");
  absl::Status status = absl::InternalError("x");
  status.SetPayload(kStatusPayloadUrl, absl::Cord("\xff\xff not a message"));
  EXPECT_TRUE(DetailsOf(status).field_violations.empty());
}

TEST(ErrorDetailsTest, ReadsTheRetryDelay) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_nanos(100'000'000);
  google::rpc::Status proto;
  proto.add_details()->PackFrom(retry);
  absl::Status status = absl::ResourceExhaustedError("later");
  status.SetPayload(kStatusPayloadUrl, absl::Cord(proto.SerializeAsString()));
  EXPECT_EQ(DetailsOf(status).retry_delay, absl::Milliseconds(100));
}

}  // namespace
}  // namespace attnd::client
