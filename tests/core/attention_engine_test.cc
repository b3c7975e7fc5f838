#include "core/attention_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "core/input_source.h"
#include "core/kernel_plan.h"
#include "tests/support/attention_case.h"
#include "tests/support/isas.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

using ::attnd::testing::Affordable;
using ::attnd::testing::AttentionCase;
using ::attnd::testing::CaseShape;
using ::attnd::testing::RandomCase;
using ::attnd::testing::RandomShape;
using ::testing::IsEmpty;

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
    EXPECT_EQ(stats->workspace_bytes, estimate.workspace_bytes);
    EXPECT_EQ(stats->flops, estimate.flops);
  }
}

INSTANTIATE_TEST_SUITE_P(PerIsa, AttentionEngineTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

// Submit computes a tiny problem in the calling thread, and has its answer when
// it returns. A problem just above the limit runs in a worker.
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

  // Most bytes of this problem are keys that no row sees.
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

  // This problem has almost no work, but very many tasks.
  AttentionCase many({.batch = 1000}, kSeed);
  std::promise<std::thread::id> all;
  engine.Submit(many.problem(), many.buffers(), nullptr,
                [&](const absl::Status& status, const RunStats&) {
                  EXPECT_TRUE(status.ok()) << status;
                  all.set_value(std::this_thread::get_id());
                });
  EXPECT_NE(all.get_future().get(), std::this_thread::get_id());
  EXPECT_THAT(many.Compare(), IsEmpty());

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

// Copies the inputs of another case, and counts how often each byte was
// requested.
class CopySource final : public InputSource {
 public:
  CopySource(AttentionBuffers from, AttentionBuffers to,
             const AttentionProblem& problem)
      : from_(from),
        to_(to),
        query_bytes_(problem.query_bytes()),
        key_bytes_(problem.key_bytes()),
        value_bytes_(problem.value_bytes()),
        loads_(static_cast<size_t>(query_bytes_ + key_bytes_ + value_bytes_)) {}

  int64_t pieces() const override { return 7; }
  int64_t pieces_before_keys() const override { return 5; }
  void LoadPiece(int64_t piece) override {
    if (piece == 5) return LoadKeys(0, key_bytes_);
    if (piece == 6) return LoadValues(0, value_bytes_);
    const int64_t begin = piece * query_bytes_ / 5;
    const int64_t end = (piece + 1) * query_bytes_ / 5;
    Copy(from_.query, to_.query, begin, end - begin, 0);
  }
  void LoadKeys(int64_t offset_bytes, int64_t size_bytes) override {
    Copy(from_.key, to_.key, offset_bytes, size_bytes, query_bytes_);
  }
  void LoadValues(int64_t offset_bytes, int64_t size_bytes) override {
    Copy(from_.value, to_.value, offset_bytes, size_bytes,
         query_bytes_ + key_bytes_);
  }

  // Returns how many bytes were loaded `times` times.
  int64_t CountOf(int times) const {
    return std::count(loads_.begin(), loads_.end(), times);
  }

 private:
  void Copy(const void* from, const void* to, int64_t offset, int64_t size,
            int64_t first) {
    if (size == 0) return;
    std::memcpy(
        const_cast<std::byte*>(static_cast<const std::byte*>(to)) + offset,
        static_cast<const std::byte*>(from) + offset,
        static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      ++loads_[static_cast<size_t>(first + offset + i)];
    }
  }

  AttentionBuffers from_;
  AttentionBuffers to_;
  int64_t query_bytes_;
  int64_t key_bytes_;
  int64_t value_bytes_;
  // Counts the loads of each byte of query, key and value, in this order.
  std::vector<uint8_t> loads_;
};

// While its inputs are still arriving, a call gives the same answer and
// requests no byte twice. The cases are tiled, direct or both, uniform or
// ragged, and have either layout.
TEST(AttentionEngineSourceTest, LoadsWhatItReadsOnce) {
  AttentionEngine engine({.threads = 2});
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < Affordable(60); ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << " case " << i);
    const CaseShape shape = RandomCase(rng, 300);
    const uint64_t seed = rng();
    AttentionCase sent(shape, seed);
    AttentionCase empty(shape, seed);
    const int64_t bytes = sent.problem().query_bytes() +
                          sent.problem().key_bytes() +
                          sent.problem().value_bytes();
    // These bytes are NaN, so a byte that is used without having been loaded is
    // noticed.
    for (auto* array : {&empty.query, &empty.key, &empty.value}) {
      std::fill_n(array->data(), array->size() * SizeOf(array->type()),
                  std::byte{0xff});
    }
    CopySource source(sent.buffers(), empty.buffers(), sent.problem());
    std::promise<absl::Status> done;
    engine.Submit(
        empty.problem(), empty.buffers(), nullptr,
        [&](const absl::Status& status, const RunStats&) {
          done.set_value(status);
        },
        &source);
    ASSERT_TRUE(done.get_future().get().ok());
    EXPECT_EQ(source.CountOf(0) + source.CountOf(1), bytes);
    // The oracle gets all inputs, also the keys that no row sees and that were
    // never loaded. They must make no difference.
    ASSERT_THAT(empty.Compare(sent.Expect()), IsEmpty());
  }
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
  // This problem would take minutes if it were computed.
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
