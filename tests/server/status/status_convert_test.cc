#include "server/status/status_convert.h"

#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <string>

#include "base/field_error.h"
#include "tests/server/message_tools.h"
#include "wire/message_splitter.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

using absl::StatusCode;

TEST(StatusConvertTest, OkHasNothingToSay) {
  const WireStatus wire = ToWireStatus(absl::OkStatus());
  EXPECT_EQ(wire.code, 0);
  EXPECT_TRUE(wire.details.empty());
}

TEST(StatusConvertTest, EveryErrorHasAReason) {
  const std::pair<absl::Status, const char*> cases[] = {
      {absl::InvalidArgumentError("x"), kInvalidField},
      {absl::ResourceExhaustedError("x"), kMemoryBudget},
      {absl::UnimplementedError("x"), kNotImplemented},
      {absl::UnavailableError("x"), kDraining},
      {absl::DeadlineExceededError("x"), kDeadlineExceeded},
      {absl::CancelledError("x"), kCancelled},
      {absl::InternalError("x"), kInternal},
  };
  for (const auto& [status, reason] : cases) {
    EXPECT_EQ(ToWireStatus(status).code, static_cast<int>(status.code()));
    EXPECT_EQ(RefusalOf(status).code, static_cast<int>(status.code()));
    EXPECT_EQ(RefusalOf(status).reason, reason);
    EXPECT_EQ(RefusalOf(status).field, "<none>");
  }
}

TEST(StatusConvertTest, OtherCodesAreOurBugs) {
  const Refusal refusal = RefusalOf(absl::UnknownError("x"));
  EXPECT_EQ(refusal.code, static_cast<int>(StatusCode::kInternal));
  EXPECT_EQ(refusal.reason, kInternal);
}

TEST(StatusConvertTest, NamesTheField) {
  const Refusal refusal = RefusalOf(FieldError("key.shape[3]", "64", "63"));
  EXPECT_EQ(refusal.field, "key.shape[3]");
  EXPECT_EQ(refusal.message, "key.shape[3]: expected 64, got 63");
}

TEST(StatusConvertTest, AMessageThatDoesNotParseHasAnEmptyPath) {
  const Refusal refusal = RefusalOf(MalformedMessageError("a.B"));
  EXPECT_EQ(refusal.field, "");
  EXPECT_EQ(refusal.reason, kMalformedMessage);
}

TEST(StatusConvertTest, CarriesTheDelay) {
  const absl::Status status = WithRetryDelay(absl::ResourceExhaustedError("x"),
                                             std::chrono::milliseconds(1250));
  EXPECT_EQ(RefusalOf(status).retry_ms, 1250);
  EXPECT_EQ(ToWireStatus(status).retry_delay, std::chrono::milliseconds(1250));
  EXPECT_EQ(ToWireStatus(absl::InternalError("x")).retry_delay, std::nullopt);
}

TEST(StatusConvertTest, FitsInTrailersWhateverWasEchoed) {
  // Base64 adds a third to the size, and gRPC allows 8 KiB for all metadata of
  // a call.
  constexpr size_t kTrailerBytes = 8192;
  const WireStatus wire = ToWireStatus(
      FieldError(std::string(100'000, 'f'), "x", std::string(100'000, '\xff')));
  EXPECT_LT(wire.details.size() * 4 / 3 + 3 * wire.message.size(),
            kTrailerBytes);
  EXPECT_FALSE(ParseRefusal(wire.details).reason.empty());
}

}  // namespace
}  // namespace attnd::server
