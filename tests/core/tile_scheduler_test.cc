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
#include <optional>
#include <random>
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

// Two jobs take turns on one worker. Each must count only its own turns as
// running, so that the sum is at most the time that passed.
TEST(TileSchedulerTest, JobsThatTakeTurnsCountTheTurnsOfOthersAsQueued) {
  TileScheduler scheduler(1);
  Gate both_submitted;
  std::atomic<bool> first_runs{true};
  const auto turns = [&](int64_t, int64_t, int64_t, SliceControl& control) {
    if (first_runs.exchange(false)) both_submitted.Wait();
    while (!control.ShouldYield()) {
    }
    return TileJob::Slice::kYield;
  };
  constexpr int kTurns = 20;
  std::atomic<int> left{2 * kTurns};
  const auto body = [&](int64_t phase, int64_t task, int64_t slot,
                        SliceControl& control) {
    return --left <= 1 ? TileJob::Slice::kDone
                       : turns(phase, task, slot, control);
  };
  FunctionJob first({1}, 1, body);
  FunctionJob second({1}, 1, body);
  std::mutex mutex;
  std::condition_variable ended;
  std::vector<JobTimes> times;
  const auto keep = [&](const absl::Status& status, const JobTimes& took) {
    EXPECT_TRUE(status.ok());
    const std::lock_guard lock(mutex);
    times.push_back(took);
    ended.notify_one();
  };
  const auto began = steady_clock::now();
  scheduler.Submit(&first, nullptr, keep);
  scheduler.Submit(&second, nullptr, keep);
  both_submitted.Open();
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return times.size() == 2; });
  const auto passed = steady_clock::now() - began;
  EXPECT_LE(times[0].running + times[1].running, passed);
  for (const JobTimes& took : times) {
    EXPECT_GT(took.queued.count(), 0);
    EXPECT_GT(took.running.count(), 0);
    EXPECT_LE(took.queued + took.running, passed);
  }
}

TEST(TileSchedulerTest, AJobThatHasAPartOfTheWorkersRunsForThatPart) {
  TileScheduler scheduler(2);
  Gate first_holds;
  Gate end;
  FunctionJob first({1}, 1, [&](int64_t, int64_t, int64_t, SliceControl&) {
    first_holds.Open();
    end.Wait();
    return TileJob::Slice::kDone;
  });
  std::atomic<bool> first_ended{false};
  std::thread caller([&] {
    JobTimes took;
    EXPECT_TRUE(scheduler.Run(&first, nullptr, &took).ok());
    first_ended = true;
    // The other job has the worker that this one cannot use.
    EXPECT_LT(took.queued, took.running);
  });
  first_holds.Wait();
  const auto hold = std::chrono::milliseconds(100);
  // Of the two tasks, one has a worker, and the other waits for `hold`.
  std::atomic<int> tasks{0};
  FunctionJob second({2}, 2, [&](int64_t, int64_t, int64_t, SliceControl&) {
    if (++tasks == 1) {
      std::this_thread::sleep_for(hold);
      end.Open();
      while (!first_ended) std::this_thread::yield();
    }
    return TileJob::Slice::kDone;
  });
  JobTimes took;
  EXPECT_TRUE(scheduler.Run(&second, nullptr, &took).ok());
  caller.join();
  EXPECT_GE(took.queued, hold / 2);
  EXPECT_GE(took.running, hold / 2);
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

// A job that should run first does not wait until the quantum is over: at least
// once in many attempts, because the test may lose its processor in any of
// them, the task hears at its first checks that it should yield.
TEST(TileSchedulerTest, ASmallerJobInterruptsALargerOneAtItsNextCheck) {
  TileScheduler scheduler(1);
  int interrupted = 0;
  constexpr int kAttempts = 20;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::atomic<bool> submitted{false};
    std::atomic<bool> started{false};
    std::optional<steady_clock::duration> waited;
    FunctionJob large({1}, 1,
                      [&](int64_t, int64_t, int64_t, SliceControl& control) {
                        if (waited) return TileJob::Slice::kDone;
                        started = true;
                        while (!submitted) {
                        }
                        const auto began = steady_clock::now();
                        while (!control.ShouldYield()) {
                        }
                        waited = steady_clock::now() - began;
                        return TileJob::Slice::kYield;
                      });
    FunctionJob small({1}, 1, [](int64_t, int64_t, int64_t, SliceControl&) {
      return TileJob::Slice::kDone;
    });
    std::atomic<int> ended{0};
    const auto count = [&](const absl::Status&, const JobTimes&) { ++ended; };
    scheduler.Submit(&large, nullptr, count,
                     {.work = {.operations = 1'000'000'000}});
    while (!started) std::this_thread::yield();
    scheduler.Submit(&small, nullptr, count, {.work = {.operations = 1000}});
    submitted = true;
    while (ended < 2) std::this_thread::yield();
    interrupted += waited < std::chrono::microseconds(100) ? 1 : 0;
  }
  EXPECT_GT(interrupted, 0);
}

// The first task of a job may take most of its time, because it packs keys for
// all. Such a job is not late while it takes the time that was expected.
TEST(TileSchedulerTest, AJobWithALongFirstTaskIsNotTakenForLate) {
  using std::chrono::milliseconds;
  TileScheduler scheduler(1);
  const auto work = [](int64_t operations) {
    return JobOrder{.work = {.operations = operations}};
  };
  Gate measured;
  FunctionJob sample({1}, 1, [](int64_t, int64_t, int64_t, SliceControl&) {
    std::this_thread::sleep_for(milliseconds(300));
    return TileJob::Slice::kDone;
  });
  scheduler.Submit(
      &sample, nullptr,
      [&](const absl::Status&, const JobTimes&) { measured.Open(); },
      work(3'000'000));
  measured.Wait();
  // This one should take 3 s then. Its first task takes 1 s, with a break.
  JobOrder order = work(30'000'000);
  order.deadline = steady_clock::now() + milliseconds(3200);
  std::atomic<bool> ended{false};
  bool had_a_break = false;
  FunctionJob late({20}, 1, [&](int64_t, int64_t task, int64_t, SliceControl&) {
    if (task > 0) return TileJob::Slice::kDone;
    if (had_a_break) return TileJob::Slice::kDone;
    had_a_break = true;
    std::this_thread::sleep_for(milliseconds(1000));
    return TileJob::Slice::kYield;
  });
  FunctionJob waiting({1}, 1, [&](int64_t, int64_t, int64_t, SliceControl&) {
    return ended ? TileJob::Slice::kDone : TileJob::Slice::kYield;
  });
  Gate all_ended;
  scheduler.Submit(
      &late, nullptr,
      [&](const absl::Status& status, const JobTimes&) {
        EXPECT_TRUE(status.ok()) << status;
        ended = true;
      },
      order);
  scheduler.Submit(
      &waiting, nullptr,
      [&](const absl::Status&, const JobTimes&) { all_ended.Open(); });
  all_ended.Wait();
}

// Jobs that wait are ended when they are cancelled, although other jobs come
// before them.
TEST(TileSchedulerTest, AWaitingJobThatIsCancelledEndsBesideARunningOne) {
  TileScheduler scheduler(1);
  std::atomic<bool> cancelled_ended{false};
  FunctionJob running({1}, 1,
                      [&](int64_t, int64_t, int64_t, SliceControl& control) {
                        while (!cancelled_ended) {
                          if (control.ShouldYield()) {
                            return TileJob::Slice::kYield;
                          }
                        }
                        return TileJob::Slice::kDone;
                      });
  FunctionJob waiting({1}, 1, [](int64_t, int64_t, int64_t, SliceControl&) {
    ADD_FAILURE() << "the cancelled job ran";
    return TileJob::Slice::kDone;
  });
  StopSignal stop;
  Gate all_ended;
  scheduler.Submit(
      &running, nullptr,
      [&](const absl::Status&, const JobTimes&) { all_ended.Open(); },
      {.work = {.operations = 1000}});
  scheduler.Submit(&waiting, &stop,
                   [&](const absl::Status& status, const JobTimes&) {
                     EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
                     cancelled_ended = true;
                   },
                   {.caller = 0, .work = {.operations = int64_t{1} << 40}});
  stop.Cancel();
  all_ended.Wait();
}

// A task that waits for another one leaves its worker to other jobs, whatever
// the order.
TEST(TileSchedulerTest, ATaskThatWaitsMakesWayForALargerJob) {
  TileScheduler scheduler(1);
  std::atomic<bool> large_ran{false};
  FunctionJob waiting({1}, 1, [&](int64_t, int64_t, int64_t, SliceControl&) {
    return large_ran ? TileJob::Slice::kDone : TileJob::Slice::kYield;
  });
  FunctionJob large({1}, 1, [&](int64_t, int64_t, int64_t, SliceControl&) {
    large_ran = true;
    return TileJob::Slice::kDone;
  });
  Gate ended;
  scheduler.Submit(&waiting, nullptr,
                   [&](const absl::Status&, const JobTimes&) { ended.Open(); },
                   {.work = {.operations = 1000}});
  EXPECT_TRUE(scheduler.Run(&large, nullptr).ok());
  ended.Wait();
}

FunctionJob JobOfAMillisecond() {
  return FunctionJob({1}, 1, [](int64_t, int64_t, int64_t, SliceControl&) {
    const auto end = steady_clock::now() + std::chrono::milliseconds(1);
    while (steady_clock::now() < end) {
    }
    return TileJob::Slice::kDone;
  });
}

JobOrder LongJobIn(std::chrono::nanoseconds time) {
  return {.deadline = steady_clock::now() + time,
          .work = {.operations = 1'000'000'000'000}};
}

TEST(TileSchedulerTest, ATicketKeepsAPlaceUntilItsJobComes) {
  TileScheduler scheduler(1);
  FunctionJob measured = JobOfAMillisecond();
  Gate measured_ended;
  scheduler.Submit(
      &measured, nullptr,
      [&](const absl::Status&, const JobTimes&) { measured_ended.Open(); },
      {.work = {.operations = 1'000'000}});
  measured_ended.Wait();
  // The worker measures a job after its end, and before the next job.
  FunctionJob next = JobOfAMillisecond();
  EXPECT_TRUE(scheduler.Run(&next, nullptr).ok());
  JobTicket ticket;
  JobTicket second;
  // A job on an idle server is always accepted. The next one says how long such
  // a job takes, which is about a thousand seconds.
  EXPECT_TRUE(
      scheduler.Admit(LongJobIn(std::chrono::hours(24)), 1, ticket).in_time);
  const std::chrono::nanoseconds needed =
      scheduler.Admit(LongJobIn(std::chrono::seconds(1)), 1, second).needed;
  EXPECT_GT(needed, std::chrono::seconds(900));
  // A new ticket gives the old one back.
  EXPECT_TRUE(scheduler.Admit(LongJobIn(needed * 6 / 5), 1, ticket).in_time);
  const auto refused = scheduler.Admit(LongJobIn(needed * 9 / 5), 1, second);
  EXPECT_FALSE(refused.in_time);
  EXPECT_TRUE(refused.retry_after.has_value());
  // A ticket that is dropped frees the place.
  ticket.GiveBack();
  EXPECT_TRUE(scheduler.Admit(LongJobIn(needed * 9 / 5), 1, second).in_time);
  FunctionJob job({1}, 1, [](int64_t, int64_t, int64_t, SliceControl&) {
    return TileJob::Slice::kDone;
  });
  Gate ended;
  scheduler.Submit(
      &job, nullptr,
      [&](const absl::Status&, const JobTimes&) { ended.Open(); },
      LongJobIn(needed * 9 / 5), std::move(second));
  ended.Wait();
  EXPECT_TRUE(scheduler.Admit(LongJobIn(needed * 6 / 5), 1, ticket).in_time);
}

// The estimates of other kinds say little about it.
TEST(TileSchedulerTest, AJobOfAKindThatWasNeverMeasuredIsTried) {
  TileScheduler scheduler(1);
  JobTicket first;
  JobTicket second;
  EXPECT_TRUE(
      scheduler.Admit(LongJobIn(std::chrono::seconds(1)), 1, first).in_time);
  EXPECT_TRUE(
      scheduler.Admit(LongJobIn(std::chrono::seconds(1)), 1, second).in_time);
}

// Random jobs of random clients, with deadlines, yields and cancellations. Each
// job ends once, each of its tasks runs once unless the job was stopped, and no
// two tasks share a slot.
TEST(TileSchedulerTest, RandomJobsEndOnce) {
  class RandomJob {
   public:
    RandomJob(TileScheduler& scheduler, std::mt19937& random)
        : slots_(1 + random() % 3), holders_(slots_), tasks_(random() % 20) {
      const auto chance = random() % 8;
      if (chance == 0) stop_.Cancel();
      yields_ = static_cast<int>(random() % 3);
      visits_ = std::vector<std::atomic<int>>(tasks_);
      job_ = std::make_unique<FunctionJob>(
          std::vector<int64_t>{static_cast<int64_t>(tasks_)},
          static_cast<int64_t>(slots_),
          [this](int64_t, int64_t task, int64_t slot, SliceControl& control) {
            std::atomic<int>& holder = holders_[static_cast<size_t>(slot)];
            if (holder++ != 0) ++clashes_;
            const bool yields = control.ShouldYield() ||
                                visits_[static_cast<size_t>(task)] < yields_;
            ++visits_[static_cast<size_t>(task)];
            --holder;
            if (yields && visits_[static_cast<size_t>(task)] <= yields_) {
              return TileJob::Slice::kYield;
            }
            ++done_tasks_;
            return TileJob::Slice::kDone;
          });
      const SteadyTime deadline =
          random() % 2 == 0 ? SteadyTime::max()
                            : steady_clock::now() + std::chrono::seconds(100);
      scheduler.Submit(
          job_.get(), &stop_,
          [this](const absl::Status& status, const JobTimes&) {
            ok_ = status.ok();
            ++ends_;
          },
          {.caller = random() % 3,
           .deadline = deadline,
           .work = {.kind = static_cast<int>(random() % 4),
                    .operations = static_cast<int64_t>(random() % 100000)}});
      if (chance == 1) stop_.Cancel();
    }

    void Check() const {
      EXPECT_EQ(ends_, 1);
      EXPECT_EQ(clashes_, 0);
      if (ok_) {
        EXPECT_EQ(done_tasks_, static_cast<int>(tasks_));
      }
    }

   private:
    const size_t slots_;
    std::vector<std::atomic<int>> holders_;
    const size_t tasks_;
    StopSignal stop_;
    int yields_ = 0;
    std::vector<std::atomic<int>> visits_;
    std::unique_ptr<FunctionJob> job_;
    std::atomic<int> clashes_{0};
    std::atomic<int> done_tasks_{0};
    std::atomic<int> ends_{0};
    std::atomic<bool> ok_{false};
  };
  std::vector<std::unique_ptr<RandomJob>> jobs;
  {
    TileScheduler scheduler(3);
    std::mt19937 random(7);
    for (int i = 0; i < 2000; ++i) {
      jobs.push_back(std::make_unique<RandomJob>(scheduler, random));
    }
    FunctionJob last({1}, 1, [](int64_t, int64_t, int64_t, SliceControl&) {
      return TileJob::Slice::kDone;
    });
    EXPECT_TRUE(scheduler.Run(&last, nullptr).ok());
  }
  for (const auto& job : jobs) job->Check();
}

// Many workers with short tasks would otherwise wait for each other.
TEST(TileSchedulerTest, ShortTasksDoNotTakeTheLockEachTime) {
  constexpr int64_t kTasks = 20'000;
  for (const int threads : {1, 3}) {
    TileScheduler scheduler(threads);
    std::atomic<int64_t> ran{0};
    FunctionJob job({kTasks}, threads,
                    [&](int64_t, int64_t, int64_t, SliceControl&) {
                      ++ran;
                      return TileJob::Slice::kDone;
                    });
    const int64_t before = scheduler.lock_use().taken;
    EXPECT_TRUE(scheduler.Run(&job, nullptr).ok());
    EXPECT_LT(scheduler.lock_use().taken - before, kTasks / 4);
    EXPECT_EQ(ran, kTasks);
  }
}

// A turn with a job ends although its next task could begin without the lock.
TEST(TileSchedulerTest, AJobOfManyShortTasksMakesWayForOthers) {
  TileScheduler scheduler(1);
  StopSignal stop;
  Gate large_runs;
  FunctionJob large({int64_t{1} << 40}, 1,
                    [&](int64_t, int64_t, int64_t, SliceControl&) {
                      large_runs.Open();
                      return TileJob::Slice::kDone;
                    });
  FunctionJob small({1}, 1, [](int64_t, int64_t, int64_t, SliceControl&) {
    return TileJob::Slice::kDone;
  });
  Gate large_ended;
  scheduler.Submit(&large, &stop,
                   [&](const absl::Status& status, const JobTimes&) {
                     EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
                     large_ended.Open();
                   });
  large_runs.Wait();
  EXPECT_TRUE(scheduler.Run(&small, nullptr).ok());
  stop.Cancel();
  large_ended.Wait();
}

// A task can wait for one that has yielded.
TEST(TileSchedulerTest, TasksThatHaveYieldedComeBeforeNewOnes) {
  TileScheduler scheduler(1);
  std::vector<int64_t> order;
  FunctionJob job({6}, 3, [&](int64_t, int64_t task, int64_t, SliceControl&) {
    order.push_back(task);
    return order.size() == 3 ? TileJob::Slice::kYield : TileJob::Slice::kDone;
  });
  EXPECT_TRUE(scheduler.Run(&job, nullptr).ok());
  EXPECT_THAT(order, ::testing::ElementsAre(0, 1, 2, 2, 3, 4, 5));
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
