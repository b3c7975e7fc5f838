#include "server/memory/admission.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <random>
#include <string>
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

// Admissions with a clock that only Pass moves.
class SharesTest : public testing::Test {
 protected:
  using Held = std::vector<Admission::Reservation>;

  SharesTest() { now_ns_ = 3600 * int64_t{1'000'000'000}; }

  static void Pass(std::chrono::nanoseconds time) { now_ns_ += time.count(); }

  static Admission Make(int64_t budget_bytes, int64_t slots) {
    return {budget_bytes, slots, nullptr, nullptr,
            [] { return SteadyTime{} + std::chrono::nanoseconds(now_ns_); }};
  }

  // Admits requests of `bytes` for `caller` until one is refused, and returns
  // its refusal.
  static Refusal Fill(Admission& admission, uint64_t caller, int64_t bytes,
                      Held& held) {
    for (int i = 0; i < 100'000; ++i) {
      auto one = admission.Admit(bytes, caller);
      if (!one.ok()) return RefusalOf(one.status());
      held.push_back(*std::move(one));
    }
    ADD_FAILURE() << "nothing is refused";
    return {};
  }

 private:
  static inline int64_t now_ns_ = 0;
};

TEST_F(SharesTest, OneCallerAloneTakesEverything) {
  for (const int64_t slots : {1, 2, 3, 256}) {
    Admission admission = Make(slots * 10, slots);
    Held held;
    EXPECT_EQ(Fill(admission, 1, 10, held).reason, "TOO_MANY_REQUESTS");
    EXPECT_EQ(held.size(), static_cast<size_t>(slots));
  }
  Admission admission = Make(1000, 100);
  Held held;
  EXPECT_EQ(Fill(admission, 1, 100, held).reason, "MEMORY_BUDGET");
  EXPECT_EQ(admission.usage().bytes, 1000);
}

TEST_F(SharesTest, OthersFindTheirSlotsThoughOneTookAll) {
  Admission admission = Make(1000, 256);
  Held first;
  Held second;
  Held third;
  EXPECT_EQ(Fill(admission, 1, 0, first).reason, "TOO_MANY_REQUESTS");
  EXPECT_EQ(first.size(), 256U);
  const Refusal refusal = Fill(admission, 2, 0, second);
  EXPECT_EQ(second.size(), 128U);
  EXPECT_EQ(refusal.reason, "TOO_MANY_REQUESTS");
  EXPECT_GT(refusal.retry_ms, 0);
  EXPECT_NE(refusal.message.find("which 2 clients share; 128 are of this"),
            std::string::npos)
      << refusal.message;
  Fill(admission, 3, 0, third);
  EXPECT_EQ(third.size(), 85U);
  // The first caller gets no more before the others have room.
  first.resize(first.size() - 100);
  EXPECT_FALSE(admission.Admit(0, 1).ok());
}

TEST_F(SharesTest, NeverTakesMoreThanTwiceTheSlots) {
  Admission admission = Make(1000, 8);
  Held held;
  for (uint64_t caller = 1; caller < 100; ++caller) {
    Fill(admission, caller, 0, held);
    EXPECT_LE(admission.usage().in_flight, 16);
  }
  EXPECT_EQ(admission.usage().in_flight, 16);
}

TEST_F(SharesTest, BytesStayFreeForACallerOfTheLastMinute) {
  Admission admission = Make(1000, 256);
  (void)*admission.Admit(1, 2);
  Held first;
  Held second;
  const Refusal refusal = Fill(admission, 1, 10, first);
  EXPECT_EQ(refusal.reason, "MEMORY_BUDGET");
  EXPECT_GT(refusal.retry_ms, 0);
  EXPECT_NE(refusal.message.find("its share is 500"), std::string::npos)
      << refusal.message;
  EXPECT_EQ(admission.usage().bytes, 750);
  EXPECT_TRUE(admission.Admit(250, 2).ok());
  Pass(seconds(59));
  EXPECT_FALSE(admission.Admit(10, 1).ok());
  Pass(seconds(2));
  EXPECT_EQ(Fill(admission, 1, 10, first).reason, "MEMORY_BUDGET");
  EXPECT_EQ(admission.usage().bytes, 1000);
}

TEST_F(SharesTest, OnceRefusedACallerWithinItsShareFindsRoomAsOthersEnd) {
  Admission admission = Make(1000, 256);
  Held first;
  Fill(admission, 1, 10, first);
  EXPECT_EQ(admission.usage().bytes, 1000);
  EXPECT_FALSE(admission.Admit(400, 2).ok());
  // As calls of the first caller end, it asks for more, and gets nothing.
  for (int i = 0; i < 40; ++i) {
    first.pop_back();
    EXPECT_FALSE(admission.Admit(10, 1).ok());
  }
  {
    const auto held = admission.Admit(400, 2);
    EXPECT_TRUE(held.ok()) << held.status();
  }
  Pass(seconds(2));
  EXPECT_TRUE(admission.Admit(10, 1).ok());
}

TEST_F(SharesTest, OneRequestMayTakeTheWholeBudgetBesideOtherCallers) {
  Admission admission = Make(1000, 256);
  (void)*admission.Admit(1, 2);
  auto one = *admission.Admit(10, 1);
  EXPECT_TRUE(one.GrowTo(1000).ok());
  EXPECT_FALSE(admission.Admit(1, 2).ok());
}

TEST_F(SharesTest, AdvisesToRetryOnlyWhereTheBudgetWouldDo) {
  Admission admission = Make(1000, 256);
  (void)*admission.Admit(1, 2);
  const auto held = admission.Admit(600, 1);
  EXPECT_GT(RefusalOf(admission.Admit(300, 1).status()).retry_ms, 0);
  EXPECT_EQ(RefusalOf(admission.Admit(1001, 1).status()).retry_ms, -1);
}

TEST_F(SharesTest, ForgetsCallersThatHoldNothing) {
  Admission admission = Make(1000, 2);
  for (uint64_t caller = 0; caller < 1000; ++caller) {
    auto held = *admission.Admit(10, caller);
    EXPECT_EQ(admission.callers(), 1);
    EXPECT_FALSE(admission.Admit(1001, caller + 5000).ok());
    held.LeaveSlot();
    EXPECT_EQ(admission.callers(), 1);
  }
  EXPECT_EQ(admission.callers(), 0);
}

// Whatever has been admitted and given back, a caller that holds less than its
// share of the slots is admitted until twice the slots are taken, the totals
// stay within the limits, and nothing is left at the end.
TEST_F(SharesTest, HoldsAtRandom) {
  constexpr int64_t kSlots = 12;
  constexpr int64_t kBudget = 10'000;
  std::mt19937_64 rng(1);
  const auto below = [&](uint64_t limit) { return rng() % limit; };
  Admission admission = Make(kBudget, kSlots);
  struct One {
    uint64_t caller;
    bool has_slot;
    Admission::Reservation held;
  };
  std::vector<One> all;
  for (int i = 0; i < 50'000; ++i) {
    if (below(100) == 0) Pass(std::chrono::seconds(below(90)));
    const uint64_t act = below(8);
    if (act < 3) {
      const uint64_t caller = below(6);
      std::map<uint64_t, int64_t> slots{{caller, 0}};
      int64_t in_flight = 0;
      int64_t own_bytes = 0;
      for (const One& one : all) {
        slots[one.caller] += one.has_slot ? 1 : 0;
        in_flight += one.has_slot ? 1 : 0;
        if (one.caller == caller) own_bytes += one.held.bytes();
      }
      const auto callers = static_cast<int64_t>(slots.size());
      const auto bytes = static_cast<int64_t>(below(500));
      const int64_t free = kBudget - admission.usage().bytes;
      auto held = admission.Admit(bytes, caller);
      const bool within_share = slots[caller] < kSlots / callers &&
                                own_bytes + bytes <= kBudget / (callers + 1);
      if (within_share && bytes <= free && in_flight < 2 * kSlots) {
        EXPECT_TRUE(held.ok()) << held.status();
      }
      if (slots[caller] >= kSlots && in_flight >= kSlots) {
        EXPECT_FALSE(held.ok());
      }
      if (held.ok()) all.push_back({caller, true, *std::move(held)});
    } else if (!all.empty()) {
      const size_t which = below(all.size());
      One& one = all[which];
      if (act == 3) {
        (void)one.held.GrowTo(static_cast<int64_t>(below(2000)));
      } else if (act == 4) {
        one.held.ShrinkTo(static_cast<int64_t>(below(500)));
      } else if (act == 5) {
        one.held.LeaveSlot();
        one.has_slot = false;
      } else {
        std::swap(one, all.back());
        all.pop_back();
      }
    }
    ASSERT_LE(admission.usage().bytes, kBudget);
    ASSERT_LE(admission.usage().in_flight, 2 * kSlots);
    ASSERT_EQ(admission.usage().reservations, static_cast<int64_t>(all.size()));
  }
  all.clear();
  EXPECT_EQ(admission.usage().bytes, 0);
  EXPECT_EQ(admission.usage().in_flight, 0);
  EXPECT_EQ(admission.callers(), 0);
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
