#include "server/memory/admission.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(AdmissionTest, GivesBackWhatWasHeld) {
  Admission admission(100, 2);
  {
    const auto held = admission.Admit(60);
    ASSERT_TRUE(held.ok());
    EXPECT_EQ(admission.usage().bytes, 60);
    EXPECT_EQ(admission.usage().in_flight, 1);
  }
  EXPECT_EQ(admission.usage().bytes, 0);
  EXPECT_EQ(admission.usage().in_flight, 0);
}

TEST(AdmissionTest, ASlotMayBeLeftBeforeTheBytes) {
  Admission admission(100, 1);
  auto first = admission.Admit(60);
  ASSERT_TRUE(first.ok());
  EXPECT_FALSE(admission.Admit(1).ok());
  first->LeaveSlot();
  first->LeaveSlot();
  EXPECT_EQ(admission.usage().in_flight, 0);
  EXPECT_EQ(admission.usage().bytes, 60);
  {
    const auto second = admission.Admit(40);
    ASSERT_TRUE(second.ok()) << second.status();
    EXPECT_FALSE(admission.Admit(0).ok());
  }
  EXPECT_FALSE(admission.WaitIdle(milliseconds(1)));
  first = Admission::Reservation();
  EXPECT_TRUE(admission.WaitIdle(seconds(60)));
  EXPECT_EQ(admission.usage().in_flight, 0);
}

TEST(AdmissionTest, AdvisesToRetryWhereTheWholeBudgetWouldDo) {
  Admission admission(100, 9);
  const auto held = admission.Admit(60);
  const Refusal now = RefusalOf(admission.Admit(50).status());
  EXPECT_EQ(now.reason, "MEMORY_BUDGET");
  EXPECT_GT(now.retry_ms, 0);
  const Refusal never = RefusalOf(admission.Admit(101).status());
  EXPECT_EQ(never.reason, "MEMORY_BUDGET");
  EXPECT_EQ(never.retry_ms, -1);
  EXPECT_EQ(admission.usage().in_flight, 1);
}

TEST(AdmissionTest, IdleMemoryMakesRoomForRequests) {
  constexpr int64_t kBlock = 2 * WorkspacePool::kSmallestBytes;
  WorkspacePool pool;
  Admission admission(4 * kBlock, 9, &pool);
  (void)pool.Reserve(kBlock);
  const int64_t idle = pool.idle_bytes();
  if (idle == 0) GTEST_SKIP() << "nothing is kept in this build";
  auto held = *admission.Admit(3 * kBlock);
  EXPECT_EQ(pool.idle_bytes(), idle);
  ASSERT_TRUE(held.GrowTo(4 * kBlock).ok());
  EXPECT_EQ(pool.idle_bytes(), 0);
}

TEST(AdmissionTest, RefusesMoreThanItsSlots) {
  Admission admission(100, 1);
  const auto held = admission.Admit(0);
  const Refusal refusal = RefusalOf(admission.Admit(0).status());
  EXPECT_EQ(refusal.reason, "TOO_MANY_REQUESTS");
  EXPECT_GT(refusal.retry_ms, 0);
}

TEST(AdmissionTest, IsOpenUntilItIsClosedHoweverFullItIs) {
  Admission admission(100, 1);
  const auto held = admission.Admit(100);
  EXPECT_TRUE(admission.CheckOpen().ok());
  EXPECT_EQ(admission.usage().reservations, 1);
  admission.Close();
  EXPECT_EQ(RefusalOf(admission.CheckOpen()).reason, "DRAINING");
}

TEST(AdmissionTest, GrowsOrChangesNothing) {
  Admission admission(100, 2);
  auto one = *admission.Admit(40);
  auto two = *admission.Admit(40);
  EXPECT_TRUE(one.GrowTo(60).ok());
  EXPECT_FALSE(two.GrowTo(41).ok());
  EXPECT_EQ(two.bytes(), 40);
  EXPECT_EQ(admission.usage().bytes, 100);
  one.ShrinkTo(10);
  EXPECT_TRUE(two.GrowTo(90).ok());
  EXPECT_EQ(admission.usage().bytes, 100);
  two.ShrinkTo(95);  // it holds less than that
  EXPECT_EQ(two.bytes(), 90);
}

TEST(AdmissionTest, MovesHoldOnce) {
  Admission admission(100, 2);
  Admission::Reservation target;
  {
    Admission::Reservation source = *admission.Admit(30);
    Admission::Reservation middle = std::move(source);
    // NOLINTNEXTLINE(bugprone-use-after-move): the test checks what is left
    EXPECT_EQ(source.bytes(), 0);
    target = std::move(middle);
  }
  EXPECT_EQ(admission.usage().bytes, 30);
  target = Admission::Reservation();
  EXPECT_EQ(admission.usage().bytes, 0);
}

TEST(AdmissionTest, ReservationsMayOutliveIt) {
  Admission::Reservation held;
  {
    Admission admission(100, 2);
    held = *admission.Admit(30);
  }
  EXPECT_TRUE(held.GrowTo(100).ok());
}

TEST(AdmissionTest, LetsNobodyInOnceClosed) {
  Admission admission(100, 2);
  admission.Close();
  const Refusal refusal = RefusalOf(admission.Admit(1).status());
  EXPECT_EQ(refusal.code, static_cast<int>(absl::StatusCode::kUnavailable));
  EXPECT_EQ(refusal.reason, "DRAINING");
}

TEST(AdmissionTest, WaitsUntilIdleInterruptedOrLate) {
  Admission admission(100, 2);
  EXPECT_TRUE(admission.WaitIdle(seconds(0)));
  auto held = *admission.Admit(1);
  EXPECT_FALSE(admission.WaitIdle(milliseconds(1)));
  std::thread releaser([&] { held = Admission::Reservation(); });
  EXPECT_TRUE(admission.WaitIdle(seconds(60)));
  releaser.join();
  held = *admission.Admit(1);
  std::thread interrupter([&] { admission.Interrupt(); });
  EXPECT_FALSE(admission.WaitIdle(seconds(60)));
  interrupter.join();
}

TEST(AdmissionTest, NeverHoldsMoreThanItsBudgetUnderContention) {
  constexpr int64_t kBudget = 1000;
  constexpr int64_t kSlots = 5;
  Admission admission(kBudget, kSlots);
  std::atomic<int64_t> held_bytes = 0;
  std::atomic<int> admitted = 0;
  std::vector<std::thread> threads;
  threads.reserve(8);
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        auto held = admission.Admit(100 + t);
        if (!held.ok()) continue;
        ++admitted;
        if (held->GrowTo(300).ok()) {
          EXPECT_LE(held_bytes += 300, kBudget);
          held_bytes -= 300;
        }
        held->ShrinkTo(50);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(admitted, 0);
  EXPECT_EQ(admission.usage().bytes, 0);
  EXPECT_EQ(admission.usage().in_flight, 0);
}

}  // namespace
}  // namespace attnd::server
