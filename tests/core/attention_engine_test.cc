#include "core/attention_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <optional>
#include <random>
#include <thread>

#include "core/kernel_plan.h"
#include "tests/support/attention_case.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::AttentionCase;
using ::attnd::testing::CaseShape;
using ::attnd::testing::RandomShape;
using ::testing::IsEmpty;

constexpr uint64_t kSeed = 20261122;

class AttentionEngineTest : public ::testing::TestWithParam<Isa> {};

TEST_P(AttentionEngineTest, AnswersWithTheForcedSetAndTheEstimatedBytes) {
  AttentionEngine engine({.threads = 2, .force_isa = GetParam()});
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(40); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    AttentionCase c(RandomShape(rng, 300), rng());
    const auto stats = engine.Run(c.problem(), c.buffers());
    ASSERT_TRUE(stats.ok()) << stats.status();
    ASSERT_THAT(c.Compare(), IsEmpty());
    EXPECT_EQ(stats->isa, MakeKernelPlan(c.problem(), engine.machine()).isa);
    EXPECT_EQ(stats->threads, 2);
    const auto estimate = engine.estimator().Estimate(c.problem());
    ASSERT_TRUE(estimate.ok());
    EXPECT_EQ(stats->workspace_bytes, estimate->workspace_bytes);
    EXPECT_EQ(stats->flops, estimate->flops);
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, AttentionEngineTest,
                         ::testing::ValuesIn(SupportedIsas()),
                         [](const auto& isa) {
                           return std::string(IsaName(isa.param));
                         });

// A tiny problem beside one that is just too large to run where it arrives: the
// first has answered when Submit returns, in this thread.
TEST(AttentionEngineHereTest, TinyProblemsAnswerBeforeSubmitReturns) {
  AttentionEngine engine({.threads = 2});
  AttentionCase tiny(
      {.q_len = 16, .kv_len = 16, .head_dim = 16, .v_head_dim = 16}, kSeed);
  std::optional<std::thread::id> ran_in;
  engine.Submit(tiny.problem(), tiny.buffers(), nullptr,
                [&](const absl::Status& status, const RunStats& stats) {
                  EXPECT_TRUE(status.ok()) << status;
                  EXPECT_GT(stats.compute_time.count(), 0);
                  ran_in = std::this_thread::get_id();
                });
  EXPECT_EQ(ran_in, std::this_thread::get_id());
  EXPECT_THAT(tiny.Compare(), IsEmpty());

  // Most of its bytes are keys that nobody sees.
  CaseShape padded{
      .q_len = 1, .kv_len = 20000, .head_dim = 64, .v_head_dim = 64};
  padded.options.key_lengths = {60};
  AttentionCase unseen(padded, kSeed);
  ran_in.reset();
  engine.Submit(unseen.problem(), unseen.buffers(), nullptr,
                [&](const absl::Status& status, const RunStats&) {
                  EXPECT_TRUE(status.ok()) << status;
                  ran_in = std::this_thread::get_id();
                });
  EXPECT_EQ(ran_in, std::this_thread::get_id());
  EXPECT_THAT(unseen.Compare(), IsEmpty());

  AttentionCase larger(
      {.q_len = 256, .kv_len = 256, .head_dim = 64, .v_head_dim = 64}, kSeed);
  std::promise<std::thread::id> done;
  engine.Submit(larger.problem(), larger.buffers(), nullptr,
                [&](const absl::Status& status, const RunStats&) {
                  EXPECT_TRUE(status.ok()) << status;
                  done.set_value(std::this_thread::get_id());
                });
  EXPECT_NE(done.get_future().get(), std::this_thread::get_id());
}

TEST(AttentionEngineStopTest, AnExpiredOrCancelledCallSaysSo) {
  AttentionEngine engine({.threads = 1});
  AttentionCase c({.q_len = 64, .kv_len = 64, .head_dim = 8, .v_head_dim = 8},
                  kSeed);
  const StopSignal expired(std::chrono::steady_clock::now());
  EXPECT_EQ(engine.Run(c.problem(), c.buffers(), &expired).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  StopSignal cancelled;
  cancelled.Cancel();
  EXPECT_EQ(engine.Run(c.problem(), c.buffers(), &cancelled).status().code(),
            absl::StatusCode::kCancelled);
}

TEST(AttentionEngineStopTest, CancellingALongCallReturnsEarly) {
  AttentionEngine engine({.threads = 1});
  // Minutes of work, if it were done.
  AttentionCase c(
      {.q_len = 40000, .kv_len = 40000, .head_dim = 128, .v_head_dim = 128},
      kSeed);
  StopSignal stop(std::chrono::steady_clock::now() +
                  std::chrono::milliseconds(30));
  EXPECT_EQ(engine.Run(c.problem(), c.buffers(), &stop).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace attnd
