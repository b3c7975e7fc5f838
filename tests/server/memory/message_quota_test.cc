#include "server/memory/message_quota.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
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

// When gRPC ends a call because of a resize, the thread that resized also
// returns what the call held.
TEST(MessageQuotaCallbackTest, MayBeCalledFromItsOwnResizing) {
  std::shared_ptr<MessageQuota> quota;
  std::vector<int64_t> told;
  const auto resize = [&](int64_t bytes) {
    told.push_back(bytes / kMiB);
    if (told.size() == 3) quota->RemoveHeld(100 * kMiB);
  };
  quota = std::make_shared<MessageQuota>(
      MessageQuota::Limits{.arriving_bytes = 300 * kMiB}, resize);
  quota->AddHeld(500 * kMiB);
  quota->RemoveHeld(400 * kMiB);
  EXPECT_EQ(told, (std::vector<int64_t>{300, 800, 400, 300}));
}

// The undefined-behaviour sanitizer reports an overflow in this test.
TEST(MessageQuotaBudgetTest, MayBeAsLargeAsNumbersAre) {
  const auto quota = std::make_shared<MessageQuota>(
      MessageQuota::Limits{
          .budget_bytes = kMax, .arriving_bytes = kMax, .kept_bytes = kMax / 2},
      [](int64_t bytes) { EXPECT_GT(bytes, 0); });
  Admission admission(kMax, kMax, nullptr, quota);
  quota->AddHeld(kMax);
  quota->RemoveHeld(kMax);
  const auto all = admission.Admit(kMax);
  EXPECT_TRUE(all.ok()) << all.status();
  EXPECT_FALSE(admission.Admit(1).ok());
}

// Freed blocks that malloc keeps, because a used block lies above them. They
// are small enough to come from the heap, and are not mapped one by one.
class FreedBlocks {
 public:
  FreedBlocks() {
    for (std::byte*& block : blocks_) {
      block = static_cast<std::byte*>(std::malloc(kBlockBytes));
      std::fill_n(block, kBlockBytes, std::byte{1});
    }
    above_ = std::malloc(kBlockBytes);
    for (std::byte* const block : blocks_) std::free(block);
  }
  ~FreedBlocks() { std::free(above_); }
  FreedBlocks(const FreedBlocks&) = delete;
  FreedBlocks& operator=(const FreedBlocks&) = delete;

  // The share of the blocks' pages that is in memory.
  double resident() const {
    const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    int64_t pages = 0;
    int64_t resident_pages = 0;
    for (const std::byte* const block : blocks_) {
      const auto address = reinterpret_cast<uintptr_t>(block);
      const uintptr_t begin = (address + page_bytes - 1) / page_bytes;
      const uintptr_t end = (address + kBlockBytes) / page_bytes;
      std::vector<unsigned char> status(end - begin);
      EXPECT_EQ(mincore(const_cast<std::byte*>(block) +
                            (begin * page_bytes - address),
                        (end - begin) * page_bytes, status.data()),
                0);
      for (const unsigned char page : status) {
        ++pages;
        resident_pages += page & 1;
      }
    }
    return static_cast<double>(resident_pages) / static_cast<double>(pages);
  }

 private:
  static constexpr size_t kBlockBytes = 64 << 10;
  std::array<std::byte*, 256> blocks_;
  void* above_;
};

class MakeRoomTest : public ::testing::Test {
 protected:
  static constexpr int64_t kBudget = 1000 * kMiB;
  static constexpr int64_t kArriving = 300 * kMiB;
  static constexpr int64_t kKept = 10 * kMiB;
  // More than the server has, whatever the heap of the test.
  static constexpr int64_t kTooMuch = 2 * (kBudget + kArriving + kKept);

  void SetUp() override {
#if !defined(__GLIBC__) || defined(__SANITIZE_ADDRESS__) || \
    defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "needs glibc's malloc";
#endif
  }

  void Pass(int64_t bytes) {
    quota_.AddHeld(bytes);
    quota_.RemoveHeld(bytes);
  }

  MessageQuota quota_{{.budget_bytes = kBudget,
                       .arriving_bytes = kArriving,
                       .kept_bytes = kKept},
                      [](int64_t) {}};
};

TEST_F(MakeRoomTest, GivesFreedMessagesBackWhenMemoryIsShort) {
  const FreedBlocks freed;
  Pass(kKept + 1);
  EXPECT_GT(freed.resident(), 0.9);
  quota_.MakeRoom(kTooMuch, 0);
  EXPECT_LT(freed.resident(), 0.1);
}

TEST_F(MakeRoomTest, CountsIdleMemoryOfThePool) {
  const FreedBlocks freed;
  Pass(kKept + 1);
  quota_.MakeRoom(kBudget, kTooMuch - kBudget);
  EXPECT_LT(freed.resident(), 0.1);
}

TEST_F(MakeRoomTest, KeepsFreedMessagesWhileAllFits) {
  const FreedBlocks freed;
  Pass(kKept + 1);
  quota_.MakeRoom(kBudget / 2, 0);
  EXPECT_GT(freed.resident(), 0.9);
}

// What gRPC holds for calls is part of what they have reserved, and would be
// counted twice.
TEST_F(MakeRoomTest, DoesNotCountTheMessagesOfCallsTwice) {
  const FreedBlocks freed;
  Pass(kKept + 1);
  quota_.AddHeld(kTooMuch);
  quota_.MakeRoom(kTooMuch, 0);
  EXPECT_GT(freed.resident(), 0.9);
}

TEST_F(MakeRoomTest, KeepsAsMuchAsMallocMayKeep) {
  const FreedBlocks freed;
  Pass(kKept);
  quota_.MakeRoom(kTooMuch, 0);
  EXPECT_GT(freed.resident(), 0.9);
}

TEST_F(MakeRoomTest, WaitsUntilAsMuchWasFreedAgain) {
  Pass(kKept + 1);
  quota_.MakeRoom(kTooMuch, 0);
  const FreedBlocks freed;
  Pass(kKept);
  quota_.MakeRoom(kTooMuch, 0);
  EXPECT_GT(freed.resident(), 0.9);
  Pass(1);
  quota_.MakeRoom(kTooMuch, 0);
  EXPECT_LT(freed.resident(), 0.1);
}

TEST_F(MessageQuotaTest, ReservationsHaveAShare) {
  Admission admission(1000 * kMiB, 8, nullptr, quota_);
  {
    auto one = *admission.Admit(100 * kMiB);
    EXPECT_EQ(told_mib(), 300);
    one.SetMessageShare(50 * kMiB);
    EXPECT_EQ(told_mib(), 350);
    Admission::Reservation moved = std::move(one);
    moved.SetMessageShare(0);
    EXPECT_EQ(told_mib(), 300);
    moved.SetMessageShare(20 * kMiB);
    EXPECT_EQ(told_mib(), 320);
  }
  EXPECT_EQ(told_mib(), 300);
}

}  // namespace
}  // namespace attnd::server
