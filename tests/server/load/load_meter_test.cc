#include "server/load/load_meter.h"

#include <gtest/gtest.h>

#include <chrono>
#include <iterator>
#include <string_view>
#include <thread>
#include <vector>

#include "google/protobuf/descriptor.h"
#include "google/protobuf/util/time_util.h"

namespace attnd::server {
namespace {

using google::protobuf::util::TimeUtil;
using std::chrono::microseconds;

class LoadMeterTest : public ::testing::Test {
 protected:
  v1::ServerLoad Report() const { return meter_.Report(engine_, admission_); }
  v1::MethodLoad Report(ServiceMethod method) const {
    return Report().methods(static_cast<int>(method));
  }

  AttentionEngine engine_{{.threads = 1}};
  Admission admission_{100, 8};
  LoadMeter meter_;
};

TEST_F(LoadMeterTest, HasEveryMethodInTheOrderOfTheService) {
  const google::protobuf::ServiceDescriptor& service =
      *v1::GetServerInfoRequest::descriptor()->file()->service(0);
  const v1::ServerLoad load = Report();
  ASSERT_EQ(load.methods_size(), service.method_count());
  for (int i = 0; i < service.method_count(); ++i) {
    EXPECT_EQ(load.methods(i).method(), service.method(i)->name());
    EXPECT_EQ(load.methods(i).finished(), 0);
  }
}

TEST_F(LoadMeterTest, AddsUpWhatTheCallsOfAMethodTook) {
  RunStats stats;
  stats.queue_time = microseconds(1);
  stats.compute_time = microseconds(20);
  stats.flops = 50;
  for (const int64_t time_us : {1, 2}) {
    meter_.Ended(ServiceMethod::kAttention, absl::OkStatus(),
                 microseconds(time_us), stats);
  }
  // What was computed for a call that failed does not count.
  meter_.Ended(ServiceMethod::kAttention, absl::CancelledError(""),
               microseconds(4), stats);
  const v1::MethodLoad load = Report(ServiceMethod::kAttention);
  EXPECT_EQ(load.finished(), 3);
  EXPECT_EQ(load.failed(), 1);
  EXPECT_EQ(TimeUtil::DurationToMicroseconds(load.total_time()), 7);
  EXPECT_EQ(TimeUtil::DurationToMicroseconds(load.queue_time()), 2);
  EXPECT_EQ(TimeUtil::DurationToMicroseconds(load.compute_time()), 40);
  EXPECT_EQ(load.flops(), 100);
  EXPECT_EQ(Report(ServiceMethod::kSelfAttention).finished(), 0);
}

TEST_F(LoadMeterTest, ASumThatDoesNotFitStaysTheLargest) {
  RunStats stats;
  stats.flops = int64_t{1} << 62;
  stats.queue_time = std::chrono::nanoseconds(int64_t{1} << 62);
  stats.compute_time = stats.queue_time;
  const auto largest = std::chrono::nanoseconds::max().count();
  // Four and eight of them are 0 in 64 bits.
  for (int i = 1; i <= 9; ++i) {
    meter_.Ended(ServiceMethod::kBenchmark, absl::OkStatus(), stats.queue_time,
                 stats);
    const v1::MethodLoad load = Report(ServiceMethod::kBenchmark);
    const int64_t expected = i == 1 ? stats.flops : largest;
    EXPECT_EQ(load.flops(), expected) << i;
    for (const auto& time :
         {load.queue_time(), load.compute_time(), load.total_time()}) {
      EXPECT_EQ(TimeUtil::DurationToNanoseconds(time), expected) << i;
    }
  }
}

TEST_F(LoadMeterTest, LosesNoCallOfManyThreads) {
  constexpr int kThreads = 4;
  constexpr int kCalls = 20'000;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([this] {
      for (int call = 0; call < kCalls; ++call) {
        meter_.Ended(ServiceMethod::kAttention, absl::UnknownError(""),
                     microseconds(1), {});
      }
    });
  }
  for (int i = 0; i < 1000; ++i) {
    const v1::MethodLoad load = Report(ServiceMethod::kAttention);
    EXPECT_LE(load.failed(), load.finished());
  }
  for (std::thread& thread : threads) thread.join();
  const v1::MethodLoad load = Report(ServiceMethod::kAttention);
  EXPECT_EQ(load.finished(), kThreads * kCalls);
  EXPECT_EQ(load.failed(), kThreads * kCalls);
  EXPECT_EQ(TimeUtil::DurationToMicroseconds(load.total_time()),
            kThreads * kCalls);
}

TEST_F(LoadMeterTest, PutsEachTimeIntoTheFirstBucketThatHoldsIt) {
  using std::chrono::nanoseconds;
  for (const nanoseconds bound : kLoadBuckets) {
    meter_.Ended(ServiceMethod::kAttention, absl::OkStatus(), bound, {});
    meter_.Ended(ServiceMethod::kAttention, absl::OkStatus(),
                 bound + nanoseconds(1), {});
  }
  const LoadHistogram times = meter_.Of(ServiceMethod::kAttention).call_time;
  EXPECT_EQ(times.counts.front(), 1);
  for (size_t i = 1; i + 1 < times.counts.size(); ++i) {
    EXPECT_EQ(times.counts[i], 2) << i;
    // Percentiles are read from buckets, so these must not be too wide.
    const double factor =
        std::chrono::duration<double>(kLoadBuckets[i]) / kLoadBuckets[i - 1];
    EXPECT_GE(factor, 2);
    EXPECT_LE(factor, 2.5);
  }
  EXPECT_EQ(times.counts.back(), 1);
}

TEST_F(LoadMeterTest, CountsTheCodesAndReasonsThatClientsGet) {
  for (const absl::Status& status :
       {absl::OkStatus(), absl::CancelledError(""), absl::DataLossError(""),
        absl::InternalError("")}) {
    meter_.Ended(ServiceMethod::kBenchmark, status, microseconds(1), {});
  }
  const MethodCounts counts = meter_.Of(ServiceMethod::kBenchmark);
  EXPECT_EQ(counts.succeeded(), 1);
  EXPECT_EQ(counts.finished(), 4);
  EXPECT_EQ(counts.by_code[1], 1);
  EXPECT_EQ(counts.by_code[13], 2);
  const std::vector<int64_t> failures = meter_.failures_by_reason();
  ASSERT_EQ(failures.size(), std::size(kServerReasons) + 1);
  for (size_t i = 0; i < failures.size(); ++i) {
    const std::string_view reason =
        i < std::size(kServerReasons) ? kServerReasons[i] : "";
    EXPECT_EQ(failures[i], reason == "CANCELLED"  ? 1
                           : reason == "INTERNAL" ? 2
                                                  : 0)
        << reason;
  }
}

TEST_F(LoadMeterTest, ReportsWhatRequestsHoldNow) {
  meter_.BeginServing(7, [] { return 5; });
  const auto reservation = admission_.Admit(40);
  ASSERT_TRUE(reservation.ok());
  const v1::ServerLoad load = Report();
  EXPECT_EQ(load.in_flight(), 1);
  EXPECT_EQ(load.max_in_flight(), 8);
  EXPECT_EQ(load.reserved_bytes(), 40);
  EXPECT_EQ(load.connections(), 5);
  EXPECT_EQ(load.max_connections(), 7);
  EXPECT_EQ(load.busy_threads(), 0);
}

}  // namespace
}  // namespace attnd::server
