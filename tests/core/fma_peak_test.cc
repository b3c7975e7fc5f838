#include "core/fma_peak.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <string>

#include "tests/support/isas.h"

namespace attnd {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

class FmaPeakTest : public ::testing::TestWithParam<Isa> {};

TEST_P(FmaPeakTest, MeasuresForAsLongAsAsked) {
  const auto start = Clock::now();
  const double rate = MeasureFmaPeak(GetParam(), milliseconds(5));
  EXPECT_GE(Clock::now() - start, milliseconds(5));
  EXPECT_TRUE(std::isfinite(rate));
  EXPECT_GT(rate, 1e6);
  // No core is this fast. A higher rate means that the compiler removed the
  // loop.
  EXPECT_LT(rate, 1e13);
}

TEST_P(FmaPeakTest, MeasuresWorkersTogether) {
  TileScheduler scheduler(2);
  const double rate = MeasureFmaPeak(GetParam(), milliseconds(5), scheduler, 2);
  EXPECT_TRUE(std::isfinite(rate));
  EXPECT_GT(rate, 1e6);
}

TEST_P(FmaPeakTest, AsksForNoMoreWorkersThanThereAre) {
  TileScheduler scheduler(1);
  EXPECT_GT(MeasureFmaPeak(GetParam(), milliseconds(1), scheduler, 64), 0);
  EXPECT_GT(MeasureFmaPeak(GetParam(), milliseconds(1), scheduler, 0), 0);
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, FmaPeakTest,
                         ::testing::ValuesIn(testing::TestedIsas()),
                         testing::IsaTestName);

// Keeps a worker busy until the test releases it.
class HoldingJob : public TileJob {
 public:
  std::vector<Phase> Phases() const override { return {{.tasks = 1}}; }
  Slice Run(int64_t, int64_t, int64_t, SliceControl&) override {
    holding.store(true);
    holding.notify_one();
    released.wait(false);
    return Slice::kDone;
  }

  std::atomic<bool> holding{false};
  std::atomic<bool> released{false};
};

TEST(FmaPeakOfBusyWorkersTest, DoesNotWaitForeverForWorkersThatOthersHold) {
  TileScheduler scheduler(2);
  HoldingJob holder;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  scheduler.Submit(&holder, nullptr, [&](const absl::Status&, const JobTimes&) {
    const std::lock_guard lock(mutex);
    done = true;
    changed.notify_one();
  });
  holder.holding.wait(false);
  EXPECT_GT(
      MeasureFmaPeak(SupportedIsas().back(), milliseconds(2), scheduler, 2), 0);
  holder.released.store(true);
  holder.released.notify_one();
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return done; });
}

}  // namespace
}  // namespace attnd
