#include "server/memory/message_quota.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "server/memory/admission.h"
#include "tests/support/numbers.h"

namespace attnd::server {
namespace {

class MessageQuotaTest : public ::testing::Test {
 protected:
  int64_t told_mib() const { return told_.back() / kMiB; }

  std::vector<int64_t> told_;
  const std::shared_ptr<MessageQuota> quota_ = std::make_shared<MessageQuota>(
      MessageQuota::Limits{.budget_bytes = 1000 * kMiB,
                           .arriving_bytes = 300 * kMiB},
      [this](int64_t bytes) { told_.push_back(bytes); });
};

TEST_F(MessageQuotaTest, MessagesOfRequestsComeBesideThoseThatArrive) {
  EXPECT_EQ(told_mib(), 300);
  {
    const MessageQuota::Held held(quota_, 200 * kMiB);
    EXPECT_EQ(told_mib(), 500);
  }
  EXPECT_EQ(told_mib(), 300);
}

TEST_F(MessageQuotaTest, SmallMessagesAreNotWorthTelling) {
  for (int i = 0; i < 100; ++i) {
    const MessageQuota::Held held(quota_, 3 * kMiB);
  }
  EXPECT_EQ(told_.size(), 1U);
}

// Ending a call gives back what it held, in the thread that made gRPC end it.
TEST(MessageQuotaCallbackTest, MayBeCalledFromItsOwnResizing) {
  std::shared_ptr<MessageQuota> quota;
  std::vector<int64_t> told;
  const auto resize = [&](int64_t bytes) {
    told.push_back(bytes / kMiB);
    if (told.size() == 3) quota->Drop(100 * kMiB);
  };
  quota = std::make_shared<MessageQuota>(
      MessageQuota::Limits{.arriving_bytes = 300 * kMiB}, resize);
  quota->Hold(500 * kMiB);
  quota->Drop(400 * kMiB);
  EXPECT_EQ(told, (std::vector<int64_t>{300, 800, 400, 300}));
}

// The undefined-behaviour sanitizer checks this.
TEST(MessageQuotaBudgetTest, MayBeAsLargeAsNumbersAre) {
  const auto quota = std::make_shared<MessageQuota>(
      MessageQuota::Limits{
          .budget_bytes = kMax, .arriving_bytes = kMax, .kept_bytes = kMax / 2},
      [](int64_t bytes) { EXPECT_GT(bytes, 0); });
  Admission admission(kMax, kMax, nullptr, quota);
  quota->Hold(kMax);
  quota->Drop(kMax);
  const auto all = admission.Admit(kMax);
  EXPECT_TRUE(all.ok()) << all.status();
  EXPECT_FALSE(admission.Admit(1).ok());
}

TEST_F(MessageQuotaTest, ReservationsLend) {
  Admission admission(1000 * kMiB, 8, nullptr, quota_);
  {
    auto one = *admission.Admit(100 * kMiB);
    EXPECT_EQ(told_mib(), 300);
    one.LendToMessages(50 * kMiB);
    EXPECT_EQ(told_mib(), 350);
    Admission::Reservation moved = std::move(one);
    moved.LendToMessages(0);
    EXPECT_EQ(told_mib(), 300);
    moved.LendToMessages(20 * kMiB);
    EXPECT_EQ(told_mib(), 320);
  }
  EXPECT_EQ(told_mib(), 300);
}

}  // namespace
}  // namespace attnd::server
