#include "core/tile_scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/thread_limit.h"

namespace attnd {
namespace {

using std::chrono::steady_clock;

// Makes tasks wait until the test opens it.
class Gate {
 public:
  void Open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

class FunctionJob : public TileJob {
 public:
  using Body = std::function<Slice(int64_t phase, int64_t task, int64_t slot,
                                   SliceControl& control)>;
  FunctionJob(const std::vector<int64_t>& tasks, int64_t slots, Body body)
      : body_(std::move(body)) {
    for (const int64_t n : tasks) phases_.push_back({n, slots});
  }

  std::vector<Phase> Phases() const override { return phases_; }
  Slice Run(int64_t phase, int64_t task, int64_t slot,
            SliceControl& control) override {
    return body_(phase, task, slot, control);
  }

 private:
  std::vector<Phase> phases_;
  Body body_;
};

TEST(TileSchedulerTest, RunsEveryTaskOnceAndPhasesInOrder) {
  for (const int threads : {1, 2, 3}) {
    TileScheduler scheduler(threads);
    std::vector<std::atomic<int>> first(100);
    std::vector<std::atomic<int>> second(50);
    std::atomic<int> early{0};
    std::atomic<int> done_first{0};
    FunctionJob job({100, 0, 50}, 4,
                    [&](int64_t phase, int64_t task, int64_t, SliceControl&) {
                      if (phase == 0) {
                        ++first[static_cast<size_t>(task)];
                        ++done_first;
                      } else {
                        early += done_first.load() == 100 ? 0 : 1;
                        ++second[static_cast<size_t>(task)];
                      }
                      return TileJob::Slice::kDone;
                    });
    EXPECT_TRUE(scheduler.Run(&job, nullptr).ok());
    for (const auto& count : first) EXPECT_EQ(count, 1);
    for (const auto& count : second) EXPECT_EQ(count, 1);
    EXPECT_EQ(early, 0);
  }
}

TEST(TileSchedulerTest, AJobWithoutTasksCompletes) {
  TileScheduler scheduler(2);
  FunctionJob job({}, 1, [](int64_t, int64_t, int64_t, SliceControl&) {
    return TileJob::Slice::kDone;
  });
  EXPECT_TRUE(scheduler.Run(&job, nullptr).ok());
}

TEST(TileSchedulerTest, ASlotBelongsToOneTaskAtATime) {
  TileScheduler scheduler(3);
  std::vector<std::atomic<int>> holders(2);
  std::atomic<int> clashes{0};
  FunctionJob job({500}, 2, [&](int64_t, int64_t, int64_t slot, SliceControl&) {
    auto& holder = holders[static_cast<size_t>(slot)];
    clashes += holder.fetch_add(1) == 0 ? 0 : 1;
    --holder;
    return TileJob::Slice::kDone;
  });
  EXPECT_TRUE(scheduler.Run(&job, nullptr).ok());
  EXPECT_EQ(clashes, 0);
}

TEST(TileSchedulerTest, AYieldedTaskGoesOnInItsSlot) {
  TileScheduler scheduler(2);
  std::vector<int64_t> slot_of(20, -1);
  std::vector<std::atomic<int>> visits(20);
  std::atomic<int> moved{0};
  FunctionJob job(
      {20}, 2, [&](int64_t, int64_t task, int64_t slot, SliceControl&) {
        const auto t = static_cast<size_t>(task);
        if (++visits[t] == 1) {
          slot_of[t] = slot;
          return TileJob::Slice::kYield;
        }
        moved += slot_of[t] == slot ? 0 : 1;
        return visits[t] == 3 ? TileJob::Slice::kDone : TileJob::Slice::kYield;
      });
  EXPECT_TRUE(scheduler.Run(&job, nullptr).ok());
  for (const auto& count : visits) EXPECT_EQ(count, 3);
  EXPECT_EQ(moved, 0);
}

// While a single worker runs an endless task, a small job must still get its
// turn.
TEST(TileSchedulerTest, ALongTaskMakesWayForASmallJob) {
  TileScheduler scheduler(1);
  std::atomic<bool> small_ran{false};
  Gate long_runs;
  FunctionJob large({1}, 1,
                    [&](int64_t, int64_t, int64_t, SliceControl& control) {
                      long_runs.Open();
                      while (!small_ran) {
                        if (control.ShouldYield()) {
                          return TileJob::Slice::kYield;
                        }
                      }
                      return TileJob::Slice::kDone;
                    });
  FunctionJob small({1}, 1, [&](int64_t, int64_t, int64_t, SliceControl&) {
    small_ran = true;
    return TileJob::Slice::kDone;
  });
  std::thread caller([&] { EXPECT_TRUE(scheduler.Run(&large, nullptr).ok()); });
  long_runs.Wait();
  EXPECT_TRUE(scheduler.Run(&small, nullptr).ok());
  caller.join();
}

TEST(TileSchedulerTest, ACancelledOrExpiredJobNeverStarts) {
  TileScheduler scheduler(1);
  std::atomic<int> ran{0};
  FunctionJob job({5}, 1, [&](int64_t, int64_t, int64_t, SliceControl&) {
    ++ran;
    return TileJob::Slice::kDone;
  });
  StopSignal cancelled;
  cancelled.Cancel();
  EXPECT_EQ(scheduler.Run(&job, &cancelled).code(),
            absl::StatusCode::kCancelled);
  const StopSignal expired(steady_clock::now());
  EXPECT_EQ(scheduler.Run(&job, &expired).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ran, 0);
}

TEST(TileSchedulerTest, CountsTheWorkersThatRunATask) {
  constexpr int kThreads = 3;
  TileScheduler scheduler(kThreads);
  EXPECT_EQ(scheduler.busy_threads(), 0);
  Gate gate;
  std::atomic<int> started{0};
  std::atomic<int> most{0};
  FunctionJob job({2}, 2, [&](int64_t, int64_t, int64_t, SliceControl&) {
    if (++started == 2) {
      most = scheduler.busy_threads();
      gate.Open();
    }
    gate.Wait();
    return TileJob::Slice::kDone;
  });
  std::atomic<int> after{-1};
  std::mutex mutex;
  std::condition_variable done;
  scheduler.Submit(&job, nullptr, [&](const absl::Status&, const JobTimes&) {
    const std::lock_guard lock(mutex);
    after = scheduler.busy_threads();
    done.notify_one();
  });
  std::unique_lock lock(mutex);
  done.wait(lock, [&] { return after >= 0; });
  EXPECT_EQ(most, 2);
  EXPECT_EQ(after, 0);
}

TEST(StopSignalTest, AnOuterSignalStopsTheInnerOne) {
  StopSignal outer;
  const StopSignal endless(SteadyTime::max(), &outer);
  const StopSignal expired(steady_clock::now(), &outer);
  EXPECT_TRUE(endless.Check().ok());
  EXPECT_EQ(expired.Check().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(outer.Check().ok());
  outer.Cancel();
  EXPECT_EQ(endless.Check().code(), absl::StatusCode::kCancelled);
}

TEST(TileSchedulerTest, CancellingStopsBetweenTasksAndInsideThem) {
  TileScheduler scheduler(2);
  StopSignal stop;
  std::atomic<int> ran{0};
  FunctionJob between({1000}, 2, [&](int64_t, int64_t, int64_t, SliceControl&) {
    if (++ran == 10) stop.Cancel();
    return TileJob::Slice::kDone;
  });
  EXPECT_EQ(scheduler.Run(&between, &stop).code(),
            absl::StatusCode::kCancelled);
  EXPECT_LE(ran, 12);  // those in progress

  StopSignal inner;
  FunctionJob inside({1}, 1,
                     [&](int64_t, int64_t, int64_t, SliceControl& control) {
                       inner.Cancel();
                       while (!control.ShouldStop()) {
                       }
                       return TileJob::Slice::kDone;
                     });
  EXPECT_EQ(scheduler.Run(&inside, &inner).code(),
            absl::StatusCode::kCancelled);
}

TEST(TileSchedulerTest, DoneMayDestroyTheJob) {
  TileScheduler scheduler(2);
  Gate finished;
  auto job = std::make_shared<FunctionJob>(
      std::vector<int64_t>{30}, 2,
      [](int64_t, int64_t, int64_t, SliceControl&) {
        return TileJob::Slice::kDone;
      });
  TileJob* raw = job.get();
  scheduler.Submit(raw, nullptr,
                   [&, job = std::move(job)](const absl::Status& status,
                                             const JobTimes&) mutable {
                     EXPECT_TRUE(status.ok());
                     job.reset();
                     finished.Open();
                   });
  finished.Wait();
}

TEST(TileSchedulerTest, DestructionCancelsWhatIsLeftAndCallsEveryDone) {
  std::atomic<int> done{0};
  Gate started;
  FunctionJob endless({1}, 1,
                      [&](int64_t, int64_t, int64_t, SliceControl& control) {
                        started.Open();
                        while (!control.ShouldStop()) {
                        }
                        return TileJob::Slice::kDone;
                      });
  FunctionJob waiting({5}, 1, [](int64_t, int64_t, int64_t, SliceControl&) {
    return TileJob::Slice::kDone;
  });
  {
    TileScheduler scheduler(1);
    const auto count = [&](const absl::Status& status, const JobTimes&) {
      EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
      ++done;
    };
    scheduler.Submit(&endless, nullptr, count);
    started.Wait();
    scheduler.Submit(&waiting, nullptr, count);
  }
  EXPECT_EQ(done, 2);
}

// If the system can start only some of the threads, the scheduler ends these
// again.
TEST(TileSchedulerTest, TooFewThreadsAreAnError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need address space of their own";
#endif
  constexpr size_t kStackBytes = size_t{256} << 20;
  const testing::DefaultStackBytes large(kStackBytes);
  rlimit before{};
  getrlimit(RLIMIT_AS, &before);
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlimit tight{
      .rlim_cur = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE)) +
                  kStackBytes + kStackBytes / 2,
      .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_AS, &tight), 0);
  EXPECT_THROW(TileScheduler(4), std::system_error);
  setrlimit(RLIMIT_AS, &before);
  EXPECT_EQ(TileScheduler(4).threads(), 4);
}

TEST(TileSchedulerTest, ManyJobsFromManyThreads) {
  TileScheduler scheduler(3);
  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  callers.reserve(8);
  for (int c = 0; c < 8; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        FunctionJob job({3, 7}, 2,
                        [&](int64_t, int64_t, int64_t, SliceControl& control) {
                          if (control.ShouldYield()) {
                            return TileJob::Slice::kYield;
                          }
                          ++total;
                          return TileJob::Slice::kDone;
                        });
        EXPECT_TRUE(scheduler.Run(&job, nullptr).ok());
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 8 * 50 * 10);
}

}  // namespace
}  // namespace attnd
