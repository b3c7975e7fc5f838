#include "client/attnctl/offline_estimate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace attnd::attnctl {
namespace {

using ::testing::StartsWith;

TEST(OfflineEstimateTest, CountsBytesOfEveryTensor) {
  const auto estimate = EstimateOffline({.batch = 2,
                                         .num_q_heads = 8,
                                         .num_kv_heads = 2,
                                         .q_len = 100,
                                         .kv_len = 300,
                                         .head_dim = 64,
                                         .v_head_dim = 32,
                                         .threads = 1,
                                         .concurrency = 5,
                                         .return_lse = true});
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->input_bytes,
            int64_t{4} * 2 * (8 * 100 * 64 + 2 * 300 * 64 + 2 * 300 * 32));
  EXPECT_EQ(estimate->output_bytes, int64_t{4} * 2 * 8 * (100 * 32 + 100));
  EXPECT_GT(estimate->workspace_bytes, 0);
  EXPECT_EQ(estimate->flash_bytes, estimate->input_bytes +
                                       estimate->output_bytes +
                                       estimate->workspace_bytes);
  EXPECT_EQ(estimate->naive_bytes, estimate->input_bytes +
                                       estimate->output_bytes +
                                       int64_t{4} * 2 * 8 * 100 * 300);
  EXPECT_EQ(estimate->flops, int64_t{2} * (64 + 32) * 2 * 8 * 100 * 300);
  EXPECT_EQ(estimate->peak_bytes, 5 * estimate->peak_per_request_bytes);
}

TEST(OfflineEstimateTest, TakesTheContractsDefaults) {
  const auto terse = EstimateOffline({.seq_len = 64, .threads = 2});
  const auto full = EstimateOffline({.batch = 1,
                                     .num_q_heads = 1,
                                     .num_kv_heads = 1,
                                     .q_len = 64,
                                     .kv_len = 64,
                                     .head_dim = 128,
                                     .v_head_dim = 128,
                                     .threads = 2,
                                     .concurrency = 1});
  ASSERT_TRUE(terse.ok()) << terse.status();
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(terse->peak_bytes, full->peak_bytes);
  EXPECT_EQ(terse->flops, full->flops);
}

TEST(OfflineEstimateTest, CountsTypesAndTensors) {
  const client::ConstElements none(client::DataType::kF16,
                                   std::span<const std::byte>());
  const client::ConstElements no_bools(client::DataType::kBool,
                                       std::span<const std::byte>());
  const auto estimate = EstimateOffline(
      {.seq_len = 100,
       .dimensions = 64,
       .num_q_heads = 2,
       .dtype = client::DataType::kBF16,
       .output_dtype = client::DataType::kF32,
       .attention = {.layout = client::Layout::kBshd,
                     .window_left = 0,
                     .window_right = 0,
                     .bias = client::ConstTensor{none, {2, 100, 100}},
                     .mask = client::ConstTensor{no_bools, {100}},
                     .precision = client::Precision::kF32}});
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->input_bytes,
            2 * 3 * 2 * 100 * 64 + 2 * 2 * 100 * 100 + 100);
  EXPECT_EQ(estimate->output_bytes, 4 * 2 * 100 * 64);
  EXPECT_EQ(estimate->flops, 4 * 64 * 2 * 100);
}

TEST(OfflineEstimateTest, NamesTheFlagAtFault) {
  using Case = std::pair<std::string, client::MemoryEstimateOptions>;
  const std::vector<Case> cases = {
      {"--seq-len:", {}},
      {"--seq-len:", {.q_len = 5}},
      {"--batch:", {.seq_len = 8, .batch = -1}},
      {"--num-q-heads:", {.seq_len = 8, .num_q_heads = 3, .num_kv_heads = 2}},
      {"--q-len:", {.seq_len = 8, .q_len = -8}},
      {"--kv-len:", {.seq_len = 8, .kv_len = -8}},
      {"--head-dim:", {.seq_len = 8, .head_dim = -1}},
      {"--num-q-heads:",
       {.seq_len = 8,
        .num_q_heads = 3,
        .num_kv_heads = 2,
        .attention = {.layout = client::Layout::kBshd}}},
      {"--window-left:", {.seq_len = 8, .attention = {.window_left = -1}}},
      {"--key-lengths[0]:", {.seq_len = 8, .attention = {.key_lengths = {9}}}},
      {"--batch:",
       {.seq_len = 8,
        .batch = 2,
        .attention = {.cu_seqlens_q = {0, 8}, .cu_seqlens_k = {0, 8}}}},
      {"--cu-seqlens-k[1]:",
       {.seq_len = 8,
        .attention = {.cu_seqlens_q = {0, 8}, .cu_seqlens_k = {0, 7}}}},
      {"--mask-shape[0]:",
       {.seq_len = 8,
        .attention = {.mask =
                          client::ConstTensor{std::vector<uint8_t>(), {3}}}}},
      {"--threads:", {.seq_len = 8, .threads = -1}},
      {"--concurrency:", {.seq_len = 8, .concurrency = -1}},
      {"--budget:", {.seq_len = 8, .budget_bytes = -1}},
      // Without a server, nothing else limits the memory.
      {"--budget:", {.seq_len = 8, .goal = EstimateGoal::kMaxBatch}},
      {"--kv-len:",
       {.q_len = 8,
        .kv_len = 8,
        .goal = EstimateGoal::kMaxSeqLen,
        .budget_bytes = 1}}};
  for (const auto& [flag, options] : cases) {
    const auto estimate = EstimateOffline(options);
    EXPECT_EQ(estimate.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(estimate.status().message()), StartsWith(flag));
  }
}

TEST(OfflineEstimateTest, EveryProblemHasAnAnswer) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  const auto estimate = EstimateOffline({.seq_len = kMax, .budget_bytes = 1});
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->peak_bytes, kMax);
  EXPECT_FALSE(estimate->fits);
  EXPECT_EQ(estimate->limiting_factor, "memory_budget");
}

// A server would not compute such a problem, whatever its budget.
TEST(OfflineEstimateTest, WithoutABudgetOnlyTheRangeOfNumbersIsALimit) {
  const auto fits = EstimateOffline({.seq_len = 50'000'000});
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_EQ(fits->limiting_factor, "");
  const auto large = EstimateOffline({.seq_len = 100'000'000});
  ASSERT_TRUE(large.ok()) << large.status();
  EXPECT_FALSE(large->fits);
  EXPECT_EQ(large->limiting_factor, "int64_range");
}

TEST(OfflineEstimateTest, FindsTheLargestThatFits) {
  struct Case {
    EstimateGoal goal;
    int64_t client::MemoryEstimateOptions::*size;
  };
  const Case cases[] = {
      {EstimateGoal::kMaxSeqLen, &client::MemoryEstimateOptions::seq_len},
      {EstimateGoal::kMaxBatch, &client::MemoryEstimateOptions::batch},
      {EstimateGoal::kMaxConcurrency,
       &client::MemoryEstimateOptions::concurrency}};
  for (const auto& [goal, size] : cases) {
    client::MemoryEstimateOptions options{.seq_len = 300,
                                          .num_q_heads = 4,
                                          .threads = 2,
                                          .goal = goal,
                                          .budget_bytes = 50 << 20};
    const auto largest = EstimateOffline(options);
    ASSERT_TRUE(largest.ok()) << largest.status();
    ASSERT_GT(largest->largest, 0);
    EXPECT_TRUE(largest->fits);
    EXPECT_EQ(largest->limiting_factor, "memory_budget");
    options.goal = EstimateGoal::kEstimate;
    options.*size = largest->largest;
    EXPECT_TRUE(EstimateOffline(options)->fits);
    EXPECT_EQ(EstimateOffline(options)->peak_bytes, largest->peak_bytes);
    ++(options.*size);
    EXPECT_FALSE(EstimateOffline(options)->fits);
  }
}

TEST(OfflineEstimateTest, TheLimitsOfAServerCount) {
  const client::MemoryEstimateOptions options{.seq_len = 300, .threads = 2};
  // Without a budget, nobody can say whether the problem fits.
  EXPECT_EQ(EstimateOffline(options)->limiting_factor, "");
  const auto fits = EstimateOffline(options, {.budget_bytes = 1 << 30});
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_TRUE(fits->fits);
  EXPECT_EQ(fits->limiting_factor, "message_size");
  const auto message = EstimateOffline(
      options, {.max_message_bytes = 1000, .budget_bytes = 1 << 30});
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_FALSE(message->fits);
  EXPECT_EQ(message->limiting_factor, "message_size");
}

}  // namespace
}  // namespace attnd::attnctl
