#include "core/job_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace attnd {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

// Runs jobs on workers that exist only in the test, on a clock that the test
// moves. Each job can use all workers.
class Simulation {
 public:
  explicit Simulation(int workers) : queue_(workers), workers_(workers) {}

  SteadyTime now() const { return now_; }
  JobQueue& queue() { return queue_; }

  // Adds a job with this much work for one worker. Returns its number.
  size_t Add(nanoseconds work, SteadyTime deadline = SteadyTime::max(),
             uint64_t caller = 0) {
    jobs_.push_back(std::make_unique<Job>(
        JobOrder{.caller = caller, .deadline = deadline}));
    Job& job = *jobs_.back();
    job.left = work;
    job.came = now_;
    queue_.Add(job, work);
    queue_.SetReady(job, true);
    return jobs_.size() - 1;
  }

  // Adds the job only if the queue says that it would end in time.
  bool AddIfInTime(nanoseconds work, SteadyTime deadline, uint64_t caller = 0) {
    const DeadlineForecast forecast = queue_.Forecast(
        {.caller = caller, .deadline = deadline}, work, workers_, now_);
    if (forecast.in_time) Add(work, deadline, caller);
    return forecast.in_time;
  }

  // Lets every worker run for a quantum, or less if its job ends.
  void Step() {
    std::vector<JobQueue::Turn> turns;
    for (int worker = 0; worker < workers_; ++worker) {
      const JobQueue::Turn turn = queue_.Begin(now_);
      if (turn.entry == nullptr) break;
      turns.push_back(turn);
    }
    now_ += JobQueue::kQuantum;
    for (const JobQueue::Turn& turn : turns) {
      Job& job = static_cast<Job&>(*turn.entry);
      if (job.over) {  // another worker has done the rest
        continue;
      }
      const nanoseconds used = std::min(JobQueue::kQuantum, job.left);
      job.left -= used;
      served_[job.order().caller] += used;
      queue_.End(turn, used, job.left);
      if (job.left > nanoseconds(0)) continue;
      queue_.Remove(job);
      job.over = true;
      job.ended = now_;
    }
  }

  void RunFor(nanoseconds time) {
    for (const SteadyTime end = now_ + time; now_ < end;) Step();
  }
  void RunAll() {
    while (queue_.size() > 0) Step();
  }

  bool IsHopeless(size_t job) const {
    return queue_.IsHopeless(*jobs_[job], now_);
  }
  bool over(size_t job) const { return jobs_[job]->over; }
  SteadyTime came(size_t job) const { return jobs_[job]->came; }
  SteadyTime ended(size_t job) const { return jobs_[job]->ended; }
  nanoseconds left(size_t job) const { return jobs_[job]->left; }
  nanoseconds served(uint64_t caller) { return served_[caller]; }
  size_t jobs() const { return jobs_.size(); }
  SteadyTime deadline(size_t job) const { return jobs_[job]->order().deadline; }

 private:
  struct Job : JobQueue::Entry {
    using Entry::Entry;
    nanoseconds left{0};
    bool over = false;
    SteadyTime came, ended;
  };

  JobQueue queue_;
  const int workers_;
  SteadyTime now_ = SteadyTime() + std::chrono::hours(1);
  std::vector<std::unique_ptr<Job>> jobs_;
  std::map<uint64_t, nanoseconds> served_;
};

TEST(JobQueueTest, ASmallJobDoesNotWaitForTheEndOfALargeOne) {
  // What a job gets itself is no time that it waits. Otherwise the large job
  // would count as smaller than the small one when 80 ms of it are left.
  Simulation simulation(1);
  const size_t large = simulation.Add(milliseconds(640));
  while (simulation.left(large) > milliseconds(20)) {
    const size_t small = simulation.Add(milliseconds(1));
    simulation.RunFor(milliseconds(20));
    ASSERT_TRUE(simulation.over(small)) << simulation.left(large).count();
    EXPECT_LE(simulation.ended(small) - simulation.came(small), milliseconds(4))
        << simulation.left(large).count() << " ns left";
  }
}

TEST(JobQueueTest, TheSmallestJobOfACallerIsFirst) {
  Simulation simulation(1);
  const size_t large = simulation.Add(seconds(1));
  const size_t middle = simulation.Add(milliseconds(20));
  const size_t small = simulation.Add(milliseconds(1));
  simulation.RunAll();
  EXPECT_LT(simulation.ended(small), simulation.ended(middle));
  EXPECT_LT(simulation.ended(middle), simulation.ended(large));
}

TEST(JobQueueTest, JobsThatNeedMostOfTheirTimeRunByDeadline) {
  Simulation simulation(1);
  const SteadyTime start = simulation.now();
  // In the order of size, the larger job would be late.
  const size_t later =
      simulation.Add(milliseconds(20), start + milliseconds(100));
  const size_t nearer =
      simulation.Add(milliseconds(30), start + milliseconds(45));
  simulation.RunAll();
  EXPECT_LE(simulation.ended(nearer), start + milliseconds(45));
  EXPECT_LE(simulation.ended(later), start + milliseconds(100));
}

TEST(JobQueueTest, ASmallJobDoesNotWaitForALargeOneWithADistantDeadline) {
  Simulation simulation(1);
  const SteadyTime start = simulation.now();
  simulation.Add(seconds(1), start + seconds(60));
  simulation.RunFor(milliseconds(10));
  const size_t small = simulation.Add(milliseconds(1), start + seconds(61));
  simulation.RunFor(milliseconds(2));
  EXPECT_TRUE(simulation.over(small));
}

// Small jobs come without end and would use all the time.
TEST(JobQueueTest, AJobWithoutADeadlineEndsBehindEndlessSmallJobs) {
  for (const bool dated : {false, true}) {
    Simulation simulation(1);
    const size_t large = simulation.Add(milliseconds(100));
    const SteadyTime start = simulation.now();
    const auto limit = milliseconds(100) * (JobQueue::kAgingShare + 1);
    while (!simulation.over(large) && simulation.now() < start + limit) {
      simulation.Add(milliseconds(1), dated ? simulation.now() + milliseconds(1)
                                            : SteadyTime::max());
      simulation.RunFor(milliseconds(1));
    }
    EXPECT_TRUE(simulation.over(large)) << "dated: " << dated;
  }
}

TEST(JobQueueTest, CallersShareByTimeAndNotByJobs) {
  Simulation simulation(2);
  for (int i = 0; i < 250; ++i) {
    simulation.Add(seconds(1), SteadyTime::max(), /*caller=*/1);
  }
  for (int i = 0; i < 2; ++i) {
    simulation.Add(seconds(10), SteadyTime::max(), /*caller=*/2);
  }
  simulation.RunFor(seconds(4));
  EXPECT_GT(simulation.served(1), milliseconds(3950));
  EXPECT_GT(simulation.served(2), milliseconds(3950));
}

// The estimates of jobs of the same size differ a little. Each thread of the
// caller has one job at a time, with a deadline that is far away.
TEST(JobQueueTest, JobsOfAboutTheSameSizeRunInTheOrderInWhichTheyCame) {
  constexpr size_t kThreads = 8;
  std::mt19937 rng(1);
  std::uniform_int_distribution<int> microseconds_off(-2000, 2000);
  Simulation simulation(1);
  std::vector<size_t> jobs(kThreads);
  std::vector<SteadyTime> began(kThreads);
  const auto begin = [&](size_t thread) {
    began[thread] = simulation.now();
    jobs[thread] =
        simulation.Add(milliseconds(20) + microseconds(microseconds_off(rng)),
                       simulation.now() + seconds(60));
  };
  for (size_t thread = 0; thread < kThreads; ++thread) begin(thread);
  nanoseconds longest{0};
  for (int step = 0; step < 40'000; ++step) {
    simulation.Step();
    for (size_t thread = 0; thread < kThreads; ++thread) {
      if (!simulation.over(jobs[thread])) continue;
      longest =
          std::max(longest, nanoseconds(simulation.now() - began[thread]));
      begin(thread);
    }
  }
  // In the exact order of arrival it would be 160 ms.
  EXPECT_LT(longest, milliseconds(320));
}

// Smaller jobs come without end. A job that is 5 ms larger counts as small as
// they do when its caller has got 40 ms, which are three of the smaller jobs.
TEST(JobQueueTest, AJobThatWaitsCountsAsSmaller) {
  Simulation simulation(1);
  const SteadyTime start = simulation.now();
  const size_t large = simulation.Add(milliseconds(20), start + seconds(60));
  int smaller = 0;
  while (!simulation.over(large) && smaller < 100) {
    const size_t job =
        simulation.Add(milliseconds(15), simulation.now() + seconds(60));
    while (!simulation.over(job) && !simulation.over(large)) simulation.Step();
    smaller += simulation.over(job) ? 1 : 0;
  }
  EXPECT_EQ(smaller, 3);
}

// The caller gets its time back that it left to others.
TEST(JobQueueTest, ASmallCallOfACallerThatCallsRarelyWaitsForNobody) {
  Simulation simulation(1);
  for (int i = 0; i < 250; ++i) {
    simulation.Add(seconds(10), SteadyTime::max(), 1);
  }
  for (int i = 0; i < 10; ++i) {
    simulation.RunFor(seconds(1));
    const size_t job = simulation.Add(milliseconds(20), SteadyTime::max(), 2);
    const SteadyTime begin = simulation.now();
    while (!simulation.over(job)) simulation.Step();
    EXPECT_LE(simulation.now() - begin, milliseconds(21)) << i;
  }
}

TEST(JobQueueTest, ANewCallerRunsAtOnceAndAnIdleOneSavesLittleUp) {
  Simulation simulation(1);
  for (int i = 0; i < 10; ++i) {
    simulation.Add(seconds(10), SteadyTime::max(), 1);
  }
  simulation.RunFor(seconds(5));
  const size_t small = simulation.Add(milliseconds(1), SteadyTime::max(), 2);
  simulation.RunFor(milliseconds(3));
  EXPECT_TRUE(simulation.over(small));
  // The five seconds without caller 2 give it kMostBehind and no more than half
  // from now on.
  const nanoseconds before = simulation.served(1);
  simulation.Add(seconds(10), SteadyTime::max(), 2);
  simulation.RunFor(seconds(2));
  EXPECT_GT(simulation.served(1) - before, milliseconds(940));
}

// A caller whose jobs come one after the other, each when the last one is over,
// gets half, as the caller that has many.
TEST(JobQueueTest, ACallerThatIsIdleForMomentsGetsNoMoreThanItsShare) {
  Simulation simulation(1);
  for (int i = 0; i < 10; ++i) {
    simulation.Add(seconds(10), SteadyTime::max(), 1);
  }
  const SteadyTime end = simulation.now() + seconds(4);
  while (simulation.now() < end) {
    const size_t job = simulation.Add(milliseconds(5), SteadyTime::max(), 2);
    while (!simulation.over(job)) simulation.Step();
  }
  EXPECT_GT(simulation.served(1), milliseconds(1950));
}

// Lets a job of the caller run for `time` in one turn.
void RunJob(JobQueue& queue, uint64_t caller, nanoseconds time) {
  JobQueue::Entry job(JobOrder{.caller = caller});
  queue.Add(job, time);
  queue.SetReady(job, true);
  const JobQueue::Turn turn = queue.Begin(SteadyTime());
  ASSERT_EQ(turn.entry, &job);
  queue.End(turn, time, nanoseconds(0));
  queue.Remove(job);
}

TEST(JobQueueTest, CallersThatEachCallOnceTakeBoundedMemory) {
  JobQueue queue(1);
  JobQueue::Entry running(JobOrder{.caller = 0});
  queue.Add(running, seconds(1));
  size_t most = 0;
  for (uint64_t caller = 1; caller <= 100'000; ++caller) {
    RunJob(queue, caller, microseconds(1));
    most = std::max(most, queue.callers());
  }
  EXPECT_EQ(most, JobQueue::kRemembered + 1);
  queue.Remove(running);
}

// Otherwise it would be served like a new caller as soon as many others call.
TEST(JobQueueTest, ACallerThatWasSeenRecentlyKeepsWhatItHasHad) {
  JobQueue queue(1);
  constexpr uint64_t kGreedy = 1;
  RunJob(queue, kGreedy, seconds(1));
  uint64_t caller = kGreedy;
  for (int round = 0; round < 4; ++round) {
    for (size_t i = 0; i < JobQueue::kRemembered - 1; ++i) {
      RunJob(queue, ++caller, microseconds(1));
    }
    JobQueue::Entry greedy(JobOrder{.caller = kGreedy});
    JobQueue::Entry other(JobOrder{.caller = ++caller});
    queue.Add(greedy, milliseconds(1));
    queue.Add(other, milliseconds(1));
    EXPECT_TRUE(queue.Precedes(other, greedy, SteadyTime())) << round;
    queue.Remove(other);
    queue.Remove(greedy);
  }
}

TEST(JobQueueTest, AJobThatIsAvoidedRunsOnlyIfNoOtherIsReady) {
  JobQueue queue(1);
  JobQueue::Entry small(JobOrder{});
  JobQueue::Entry large(JobOrder{.caller = 1});
  queue.Add(small, milliseconds(1));
  queue.Add(large, seconds(1));
  const SteadyTime now;
  EXPECT_EQ(queue.Begin(now).entry, nullptr);
  queue.SetReady(small, true);
  EXPECT_EQ(queue.Begin(now, &small).entry, &small);
  queue.SetReady(large, true);
  EXPECT_EQ(queue.Begin(now, &small).entry, &large);
  queue.Remove(small);
  queue.Remove(large);
  EXPECT_EQ(queue.size(), 0);
}

TEST(JobQueueTest, AnArrivedJobPrecedesWhatItShouldInterrupt) {
  JobQueue queue(1);
  const SteadyTime now;
  JobQueue::Entry large(JobOrder{});
  JobQueue::Entry small(JobOrder{});
  JobQueue::Entry other(JobOrder{.caller = 1});
  queue.Add(large, seconds(1));
  queue.SetReady(large, true);
  EXPECT_EQ(queue.Begin(now).entry, &large);
  queue.Add(small, milliseconds(1));
  queue.Add(other, seconds(2));
  EXPECT_TRUE(queue.Precedes(small, large, now));
  EXPECT_FALSE(queue.Precedes(large, small, now));
  EXPECT_TRUE(queue.Precedes(other, large, now));
  EXPECT_FALSE(queue.Precedes(large, other, now));
  for (JobQueue::Entry* entry : {&large, &small, &other}) queue.Remove(*entry);
}

// The decision about deadlines is a function of what is in the queue.
class ForecastTest : public testing::Test {
 protected:
  DeadlineForecast Of(milliseconds work, milliseconds until,
                      uint64_t caller = 0, int64_t width = 2) {
    return simulation_.queue().Forecast(
        {.caller = caller, .deadline = simulation_.now() + until}, work, width,
        simulation_.now());
  }
  SteadyTime In(milliseconds time) { return simulation_.now() + time; }

  Simulation simulation_{2};
};

TEST_F(ForecastTest, AnIdleServerTriesEverything) {
  EXPECT_TRUE(Of(milliseconds(1000), milliseconds(1)).in_time);
}

TEST_F(ForecastTest, AJobWithoutADeadlineIsAlwaysAccepted) {
  simulation_.Add(seconds(100), In(seconds(60)));
  EXPECT_TRUE(simulation_.queue()
                  .Forecast({}, seconds(1000), 2, simulation_.now())
                  .in_time);
}

TEST_F(ForecastTest, CountsWhatRunsBefore) {
  simulation_.Add(milliseconds(100), In(milliseconds(60)));
  // 50 ms on two workers, and 20 ms for the job itself. A tenth of that and a
  // quantum are to spare.
  EXPECT_TRUE(Of(milliseconds(40), milliseconds(78)).in_time);
  const DeadlineForecast late = Of(milliseconds(40), milliseconds(65));
  EXPECT_FALSE(late.in_time);
  EXPECT_TRUE(late.own_deadline);
  EXPECT_EQ(late.needed, microseconds(77500));
  EXPECT_EQ(late.left, milliseconds(65));
  EXPECT_EQ(late.retry_after, microseconds(12500));
}

TEST_F(ForecastTest, AJobThatIsTooLargeNeedNotTryAgain) {
  simulation_.Add(milliseconds(10), In(milliseconds(60)));
  const DeadlineForecast late = Of(milliseconds(200), milliseconds(50));
  EXPECT_FALSE(late.in_time);
  EXPECT_EQ(late.retry_after, std::nullopt);
  // It can use one worker alone.
  EXPECT_FALSE(Of(milliseconds(60), milliseconds(50), 0, 1).in_time);
  EXPECT_TRUE(Of(milliseconds(60), milliseconds(50), 0, 2).in_time);
}

TEST_F(ForecastTest, DoesNotMakeOthersLate) {
  simulation_.Add(milliseconds(100), In(milliseconds(60)));
  const DeadlineForecast late = Of(milliseconds(40), milliseconds(30));
  EXPECT_FALSE(late.in_time);
  EXPECT_FALSE(late.own_deadline);
  EXPECT_EQ(late.left, milliseconds(60));
  EXPECT_EQ(late.retry_after, microseconds(17500));
  EXPECT_TRUE(Of(milliseconds(2), milliseconds(30)).in_time);
}

// The estimate of the whole job may be wrong, so its last part may be, too.
TEST_F(ForecastTest, AJobKeepsItsSpareTimeWhileItRuns) {
  simulation_.Add(milliseconds(200), In(milliseconds(125)));
  simulation_.RunFor(milliseconds(90));
  // It needs 10 ms more, and has 35. A tenth of 90 ms is still to spare.
  EXPECT_TRUE(Of(milliseconds(20), milliseconds(34)).in_time);
  const DeadlineForecast late = Of(milliseconds(34), milliseconds(34));
  EXPECT_FALSE(late.in_time);
  EXPECT_FALSE(late.own_deadline);
  // The same is true for a job that would run after it.
  EXPECT_FALSE(Of(milliseconds(30), milliseconds(36)).in_time);
  EXPECT_TRUE(Of(milliseconds(30), milliseconds(38)).in_time);
}

TEST_F(ForecastTest, AHopelessJobKeepsNobodyOut) {
  simulation_.Add(milliseconds(200), In(milliseconds(60)));
  EXPECT_TRUE(Of(milliseconds(20), milliseconds(30)).in_time);
}

TEST_F(ForecastTest, AJobThatIsTooLateEndsAtItsDeadline) {
  simulation_.Add(milliseconds(2000), In(milliseconds(60)));
  EXPECT_TRUE(Of(milliseconds(20), milliseconds(78)).in_time);
  EXPECT_FALSE(Of(milliseconds(20), milliseconds(76)).in_time);
}

TEST_F(ForecastTest, JobsWithoutDeadlinesTakeOnlyTheirShare) {
  simulation_.Add(seconds(100));
  EXPECT_TRUE(Of(milliseconds(100), milliseconds(64)).in_time);
  EXPECT_FALSE(Of(milliseconds(100), milliseconds(62)).in_time);
}

TEST_F(ForecastTest, OtherCallersTakeTheirShareOrWhatTheyNeed) {
  simulation_.Add(seconds(100), SteadyTime::max(), 1);
  EXPECT_FALSE(Of(milliseconds(100), milliseconds(110)).in_time);
  EXPECT_TRUE(Of(milliseconds(100), milliseconds(111)).in_time);
  Simulation brief(2);
  brief.Add(milliseconds(10), SteadyTime::max(), 1);
  const auto forecast = [&](milliseconds until) {
    return brief.queue().Forecast({.deadline = brief.now() + until},
                                  milliseconds(100), 2, brief.now());
  };
  EXPECT_TRUE(forecast(milliseconds(62)).in_time);
  EXPECT_FALSE(forecast(milliseconds(60)).in_time);
}

TEST_F(ForecastTest, AJobIsHopelessIfItWouldBeLateAlone) {
  const size_t job = simulation_.Add(milliseconds(100), In(milliseconds(60)));
  EXPECT_FALSE(simulation_.IsHopeless(job));
  const size_t late = simulation_.Add(milliseconds(100), In(milliseconds(35)));
  EXPECT_TRUE(simulation_.IsHopeless(late));
  const size_t undated = simulation_.Add(seconds(100));
  EXPECT_FALSE(simulation_.IsHopeless(undated));
}

// What is accepted ends in time, whatever comes: random arrivals of five times
// the capacity, with sizes from 0.1 to 10.
TEST(JobQueueTest, AcceptedJobsEndInTimeUnderOverload) {
  for (const uint32_t seed : {1U, 2U, 3U, 4U}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> exponent(-1, 1);
    Simulation simulation(2);
    const SteadyTime end = simulation.now() + seconds(20);
    nanoseconds accepted{0};
    SteadyTime next = simulation.now();
    while (simulation.now() < end) {
      while (next <= simulation.now()) {
        const nanoseconds work(
            static_cast<int64_t>(40e6 * std::pow(10, exponent(random))));
        // Four times the time that the job takes alone on both workers.
        if (simulation.AddIfInTime(work, simulation.now() + 2 * work)) {
          accepted += work;
        }
        std::exponential_distribution<double> gap(1 / 9e6);
        next += nanoseconds(static_cast<int64_t>(gap(random)));
      }
      simulation.Step();
    }
    simulation.RunAll();
    int late = 0;
    for (size_t job = 0; job < simulation.jobs(); ++job) {
      late += simulation.ended(job) > simulation.deadline(job) ? 1 : 0;
    }
    EXPECT_EQ(late, 0) << "of " << simulation.jobs();
    // Both workers are busy almost all the time.
    EXPECT_GT(accepted, seconds(40) * 85 / 100);
  }
}

}  // namespace
}  // namespace attnd
