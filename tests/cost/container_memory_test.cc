#include "cost/container_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

TEST(ContainerMemoryTest, TheSharesAreThoseOfTheLimitAndHoldTheCalls) {
  for (const int64_t peak_mib : {1, 100, 1'000, 30'000}) {
    for (const int64_t concurrency : {1, 3, 64}) {
      const CallCost call = {.peak_bytes = peak_mib * kMiB,
                             .wire_bytes = 2 * kMiB,
                             .required_message_bytes = kMiB};
      const auto memory =
          SolveContainerMemory(call, Transport::kInline, concurrency);
      ASSERT_TRUE(memory.ok()) << memory.status();
      EXPECT_EQ(memory->max_message_bytes, kDefaultMaxMessageBytes);
      EXPECT_EQ(memory->need.peak_bytes, concurrency * peak_mib * kMiB);
      EXPECT_EQ(memory->need.arriving_bytes, concurrency * 2 * kMiB);
      EXPECT_EQ(memory->limit_bytes % kMiB, 0);
      EXPECT_EQ(memory->shares.total_bytes(), memory->limit_bytes);
      EXPECT_TRUE(
          SharesHold(memory->shares, memory->need, memory->max_message_bytes));
      const MemoryShares smaller = ShareMemory({}, memory->limit_bytes - kMiB);
      EXPECT_FALSE(
          SharesHold(smaller, memory->need, memory->max_message_bytes));
    }
  }
}

TEST(ContainerMemoryTest, TheMessageLimitFollowsTheMessage) {
  const CallCost call = {.peak_bytes = 1'000 * kMiB,
                         .wire_bytes = 300 * kMiB,
                         .required_message_bytes = 300 * kMiB + 1};
  const auto memory = SolveContainerMemory(call, Transport::kInline, 1);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->max_message_bytes, 301 * kMiB);
}

TEST(ContainerMemoryTest, AStreamIsAdmittedBeforeItsChunksArrive) {
  const CallCost call = {.peak_bytes = 100 * kMiB, .wire_bytes = 50 * kMiB};
  const auto memory = SolveContainerMemory(call, Transport::kStream, 8);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->need.arriving_bytes, 0);
}

TEST(ContainerMemoryTest, WhatNoContainerHoldsIsRefused) {
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  const CallCost message = {.peak_bytes = kMiB,
                            .required_message_bytes = int64_t{1} << 31};
  const CallCost peak = {.peak_bytes = kLargest};
  const CallCost half = {.peak_bytes = kLargest / 2};
  for (const auto& [call, concurrency] :
       {std::pair(message, int64_t{1}), std::pair(peak, int64_t{1}),
        std::pair(half, int64_t{3})}) {
    const absl::Status status =
        SolveContainerMemory(call, Transport::kInline, concurrency).status();
    EXPECT_TRUE(absl::IsOutOfRange(status)) << status;
  }
}

}  // namespace
}  // namespace attnd
