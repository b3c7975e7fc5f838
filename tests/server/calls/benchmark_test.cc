#include "server/calls/benchmark.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/calls/benchmark_call.h"
#include "server/calls/random_floats.h"
#include "server/memory/admission.h"
#include "tests/server/message_tools.h"
#include "tests/support/eventually.h"
#include "tests/support/thread_limit.h"

namespace attnd::server {
namespace {

using ::attnd::testing::Eventually;
using std::chrono::seconds;

class BenchmarkTest : public ::testing::Test {
 protected:
  static v1::BenchmarkRequest Small() {
    v1::BenchmarkRequest request;
    request.set_num_vectors(256);
    request.set_dimensions(32);
    request.set_num_heads(2);
    request.set_repetitions(2);
    return request;
  }

  struct Outcome {
    absl::StatusOr<v1::BenchmarkResult> result = absl::UnknownError("unset");
    std::vector<std::string> phases;
    std::vector<double> fractions;
    std::vector<std::optional<double>> seconds_left;
    int64_t held_bytes = -1;  // what the call holds when it is over
  };
  Outcome Run(
      const v1::BenchmarkRequest& request, Admission& admission,
      const StopSignal& stop,
      const std::function<void()>& on_progress = [] {}) {
    ServiceContext context{engine_, admission, 1LL << 28, 4096};
    context.max_benchmark_time = max_time_;
    Outcome outcome;
    auto spec = DecodeBenchmark(request, context);
    if (!spec.ok()) {
      outcome.result = spec.status();
      return outcome;
    }
    if (peak_time_) spec->peak_time = *peak_time_;
    Admission::Reservation reservation = *admission.Admit(0);
    absl::StatusOr<BenchmarkOutcome> ran =
        RunBenchmark(*spec, context, reservation, stop,
                     [&](const v1::BenchmarkProgress& progress) {
                       outcome.phases.push_back(progress.phase());
                       outcome.fractions.push_back(progress.fraction());
                       outcome.seconds_left.push_back(
                           progress.has_seconds_left()
                               ? std::optional(progress.seconds_left())
                               : std::nullopt);
                       on_progress();
                     });
    outcome.held_bytes = reservation.bytes();
    if (!ran.ok()) {
      outcome.result = ran.status();
      return outcome;
    }
    EXPECT_EQ(ran->result.stats().flops(), ran->flash_stats.flops);
    EXPECT_GT(ran->flash_stats.compute_time.count(), 0);
    outcome.result = std::move(ran->result);
    return outcome;
  }

  AttentionEngine engine_{{.threads = 2}};
  Admission admission_{1LL << 30, 8};
  StopSignal stop_;
  std::optional<std::chrono::nanoseconds> peak_time_;
  std::chrono::nanoseconds max_time_{0};  // 0 means no limit
};

TEST_F(BenchmarkTest, TheResultAddsUp) {
  const Outcome outcome = Run(Small(), admission_, stop_);
  ASSERT_TRUE(outcome.result.ok()) << outcome.result.status();
  const v1::BenchmarkResult& got = *outcome.result;
  EXPECT_EQ(got.num_queries(), 256);
  EXPECT_EQ(got.dimensions(), 32);
  EXPECT_EQ(got.repetitions(), 2);
  EXPECT_GT(got.flash_time_ms(), 0);
  EXPECT_NEAR(got.speedup(), got.naive_time_ms() / got.flash_time_ms(), 1e-9);
  EXPECT_NEAR(got.peak_ratio(), got.gflops() / got.peak_gflops(), 1e-9);
  EXPECT_NEAR(got.gflops(),
              4.0 * 32 * 256 * 256 * 2 / got.flash_time_ms() / 1e6, 1e-6);
  EXPECT_LT(got.max_abs_error(), 1e-5);
  const int64_t tensors = 4LL * 2 * 256 * 32 * 4;
  EXPECT_EQ(got.naive_peak_bytes(), tensors + 2LL * 256 * 256 * 4);
  EXPECT_EQ(got.flash_peak_bytes(), tensors + got.stats().workspace_bytes());
  EXPECT_NEAR(
      got.memory_reduction(),
      1 - double(got.flash_peak_bytes()) / double(got.naive_peak_bytes()),
      1e-12);
  EXPECT_EQ(got.stats().threads(), 2);
  // The call has freed the tensors, although the client may still be reading.
  EXPECT_LE(outcome.held_bytes, kMessageEnvelopeBytes);
  EXPECT_EQ(admission_.usage().bytes, 0);
}

// Flash attention reads 16-bit numbers, and naive attention gets the same
// values in f32.
TEST_F(BenchmarkTest, HalvesAreBenchmarkedToo) {
  for (const v1::DataType type : {v1::DATA_TYPE_F16, v1::DATA_TYPE_BF16}) {
    v1::BenchmarkRequest request = Small();
    request.set_dtype(type);
    const Outcome outcome = Run(request, admission_, stop_);
    ASSERT_TRUE(outcome.result.ok()) << outcome.result.status();
    const v1::BenchmarkResult& got = *outcome.result;
    const int64_t elements = 4LL * 2 * 256 * 32;
    EXPECT_EQ(got.naive_peak_bytes(), elements * 4 + 2LL * 256 * 256 * 4);
    EXPECT_EQ(got.flash_peak_bytes(),
              elements * 2 + got.stats().workspace_bytes());
    EXPECT_GT(got.speedup(), 0);
    // Answers are averages of numbers in [-1, 1), so they are far below 1.
    // Rounding to a 16-bit type changes them by up to 2^-11 (f16) or 2^-8
    // (bf16) of their size.
    EXPECT_GT(got.max_abs_error(), 0);
    EXPECT_LT(got.max_abs_error(), type == v1::DATA_TYPE_F16 ? 5e-4 : 5e-3);
    EXPECT_LE(outcome.held_bytes, kMessageEnvelopeBytes);
    EXPECT_EQ(admission_.usage().bytes, 0);
  }
}

// Blocks of memory are multiples of 64 bytes, but most tensors are not. This
// test runs sizes around one and around several such lines, with every type.
TEST_F(BenchmarkTest, EverySizeIsBenchmarked) {
  peak_time_ = std::chrono::microseconds(100);
  for (const v1::DataType type :
       {v1::DATA_TYPE_F32, v1::DATA_TYPE_F16, v1::DATA_TYPE_BF16}) {
    for (const int64_t vectors : {1, 2, 15, 16, 17, 31, 32, 33, 101}) {
      for (const int64_t dimensions : {1, 15, 16, 17, 31, 33, 80}) {
        SCOPED_TRACE(v1::DataType_Name(type) + ", " + std::to_string(vectors) +
                     " x " + std::to_string(dimensions));
        v1::BenchmarkRequest request;
        request.set_num_vectors(vectors);
        request.set_dimensions(dimensions);
        request.set_dtype(type);
        request.set_repetitions(1);
        const Outcome outcome = Run(request, admission_, stop_);
        ASSERT_TRUE(outcome.result.ok()) << outcome.result.status();
        EXPECT_TRUE(outcome.result->has_naive_time_ms());
        // Answers are below 1 and rounded to the type.
        EXPECT_LT(outcome.result->max_abs_error(),
                  type == v1::DATA_TYPE_F32   ? 1e-5
                  : type == v1::DATA_TYPE_F16 ? 1e-3
                                              : 1e-2);
      }
    }
  }
  EXPECT_EQ(admission_.usage().bytes, 0);
}

TEST_F(BenchmarkTest, ProgressNeverFallsAndNamesThePhases) {
  const Outcome outcome = Run(Small(), admission_, stop_);
  const std::vector<std::string> expected = {
      "prepare", "peak", "naive", "flash", "peak", "naive", "flash", "verify"};
  EXPECT_EQ(outcome.phases, expected);
  double last = 0;
  for (const double fraction : outcome.fractions) {
    EXPECT_GE(fraction, last);
    EXPECT_LT(fraction, 1);
    last = fraction;
  }
  EXPECT_GT(last, 0);
  // The first repetition ends at the second measurement of the peak.
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(outcome.seconds_left[i].has_value(), i >= 4) << expected[i];
    EXPECT_GE(outcome.seconds_left[i].value_or(0), 0);
  }
}

// Measuring the peak takes all threads for 30 ms even if the problem is small.
TEST_F(BenchmarkTest, ManyRepetitionsMeasureThePeakTenTimes) {
  v1::BenchmarkRequest request;
  request.set_num_vectors(1);
  request.set_repetitions(1000);
  const Outcome outcome = Run(request, admission_, stop_);
  ASSERT_TRUE(outcome.result.ok()) << outcome.result.status();
  const auto count = [&](const char* phase) {
    return std::count(outcome.phases.begin(), outcome.phases.end(), phase);
  };
  EXPECT_EQ(count("peak"), 10);
  EXPECT_EQ(count("flash"), 1000);
  EXPECT_TRUE(
      std::is_sorted(outcome.fractions.begin(), outcome.fractions.end()));
  EXPECT_LT(outcome.fractions.back(), 1);
}

// The limit allows a small part of the benchmark, which would take hundreds of
// times as long.
TEST_F(BenchmarkTest, AnswersWhatItHasWhenItsTimeIsUp) {
  v1::BenchmarkRequest request = Small();
  request.set_num_vectors(2048);
  request.set_num_heads(1);
  request.set_repetitions(1000);
  // At least one repetition ends within the limit, even under sanitizers.
  const Outcome one = [&] {
    v1::BenchmarkRequest once = request;
    once.set_repetitions(1);
    const auto begin = std::chrono::steady_clock::now();
    Outcome outcome = Run(once, admission_, stop_);
    max_time_ = 4 * (std::chrono::steady_clock::now() - begin);
    return outcome;
  }();
  ASSERT_TRUE(one.result.ok()) << one.result.status();
  const auto begin = std::chrono::steady_clock::now();
  const Outcome outcome = Run(request, admission_, stop_);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10 * max_time_);
  ASSERT_TRUE(outcome.result.ok()) << outcome.result.status();
  const auto flash_runs =
      std::count(outcome.phases.begin(), outcome.phases.end(), "flash");
  EXPECT_GE(outcome.result->repetitions(), 1);
  EXPECT_LT(outcome.result->repetitions(), 1000);
  // The last repetition did not end in time, or no other began.
  EXPECT_GE(flash_runs, outcome.result->repetitions());
  EXPECT_LE(flash_runs, outcome.result->repetitions() + 1);
  EXPECT_EQ(outcome.phases.back(), "verify");
  EXPECT_GT(outcome.result->flash_time_ms(), 0);
  EXPECT_GT(outcome.result->naive_time_ms(), 0);
  EXPECT_GT(outcome.result->peak_gflops(), 0);
  // The run that was stopped has left part of its results in the output, which
  // must not matter here.
  EXPECT_LT(outcome.result->max_abs_error(), 1e-5);
  EXPECT_LE(outcome.held_bytes, kMessageEnvelopeBytes);
}

// The time runs out in each phase until the first repetition has ended.
TEST_F(BenchmarkTest, RefusesWhereNotOneRepetitionEndsInTime) {
  peak_time_ = std::chrono::milliseconds(1);
  max_time_ = std::chrono::milliseconds(200);
  for (size_t at = 1; at <= 4; ++at) {
    const auto over = std::chrono::steady_clock::now() + max_time_;
    size_t seen = 0;
    const Outcome outcome = Run(Small(), admission_, stop_, [&] {
      if (++seen != at) return;
      while (std::chrono::steady_clock::now() < over) std::this_thread::yield();
    });
    EXPECT_LE(outcome.phases.size(), at);  // a slow build can end even earlier
    const Refusal refusal = RefusalOf(outcome.result.status());
    EXPECT_EQ(refusal.code,
              static_cast<int>(absl::StatusCode::kResourceExhausted));
    EXPECT_EQ(refusal.reason, "WORK_LIMIT");
    EXPECT_EQ(refusal.retry_ms, -1);
    EXPECT_NE(refusal.message.find("0.2 s that the server allows "
                                   "(--max-benchmark-seconds)"),
              std::string::npos)
        << refusal.message;
    EXPECT_LE(outcome.held_bytes, kMessageEnvelopeBytes);
  }
}

// If the call itself was ended, the status says so, even if the time of the
// benchmark is over as well.
TEST_F(BenchmarkTest, TheCallsOwnEndWeighsMore) {
  max_time_ = std::chrono::nanoseconds(1);
  stop_.Cancel();
  EXPECT_EQ(Run(Small(), admission_, stop_).result.status().code(),
            absl::StatusCode::kCancelled);
}

TEST_F(BenchmarkTest, LeavesNaiveOutWhereItDoesNotFit) {
  v1::BenchmarkRequest request = Small();
  request.set_num_vectors(2048);
  Admission tight(16LL << 20, 1);  // the scores alone take 32 MiB
  const Outcome outcome = Run(request, tight, stop_);
  ASSERT_TRUE(outcome.result.ok()) << outcome.result.status();
  EXPECT_FALSE(outcome.result->has_naive_time_ms());
  EXPECT_FALSE(outcome.result->has_speedup());
  EXPECT_EQ(outcome.result->naive_peak_bytes(),
            4LL * 2 * 2048 * 32 * 4 + 2LL * 2048 * 2048 * 4);
}

TEST_F(BenchmarkTest, FewerThreadsAreGranted) {
  v1::BenchmarkRequest request = Small();
  request.set_threads(1);
  const Outcome outcome = Run(request, admission_, stop_);
  ASSERT_TRUE(outcome.result.ok());
  EXPECT_EQ(outcome.result->stats().threads(), 1);
}

// After this error, the server must continue to work.
TEST_F(BenchmarkTest, ASystemWithoutThreadsIsSaidSo) {
  v1::BenchmarkRequest request = Small();
  request.set_threads(1);
  {
    const testing::DefaultStackBytes none(testing::DefaultStackBytes::kNone);
    const Refusal refusal =
        RefusalOf(Run(request, admission_, stop_).result.status());
    EXPECT_EQ(refusal.reason, "THREAD_LIMIT") << refusal.message;
    EXPECT_EQ(refusal.code,
              static_cast<int>(absl::StatusCode::kResourceExhausted));
    EXPECT_GT(refusal.retry_ms, 0);
  }
  EXPECT_TRUE(Run(request, admission_, stop_).result.ok());
}

TEST_F(BenchmarkTest, StopsWhereverItIs) {
  for (size_t at = 1; at <= 8; ++at) {
    StopSignal stop;
    size_t seen = 0;
    const Outcome outcome = Run(Small(), admission_, stop, [&] {
      if (++seen == at) stop.Cancel();
    });
    EXPECT_EQ(outcome.result.status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(outcome.phases.size(), at);
  }
}

TEST_F(BenchmarkTest, StopsWhileItPrepares) {
  v1::BenchmarkRequest request = Small();
  request.set_num_vectors(1024);
  request.set_dimensions(128);
  request.set_num_heads(
      1024);  // 2 GiB of tensors, which take about a second to fill
  Admission wide(8LL << 30, 1);
  // This fills a sixteenth of the memory, to measure the speed of this build
  // and machine. It counts processor time, because other processes may take any
  // share of the wall time.
  std::vector<float> part(3 * (128 << 20) / 16);
  const std::clock_t part_begin = std::clock();
  RandomFloats(1).Fill(part);
  const std::clock_t part_took = std::clock() - part_begin;

  const std::clock_t begin = std::clock();
  const StopSignal stop(std::chrono::steady_clock::now() +
                        std::chrono::milliseconds(20));
  const Outcome outcome = Run(request, wide, stop);
  const std::clock_t took = std::clock() - begin;
  EXPECT_EQ(outcome.result.status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(outcome.phases, std::vector<std::string>{"prepare"});
  EXPECT_LT(took, part_took * 8 + CLOCKS_PER_SEC / 10);
}

TEST_F(BenchmarkTest, RefusesByName) {
  using Asked = v1::BenchmarkRequest;
  struct Case {
    const char* field;
    absl::StatusCode code;
    std::function<void(Asked&)> spoil;
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const Case cases[] = {
      {"num_vectors", kInvalid, [](Asked& r) { r.set_num_vectors(0); }},
      {"num_vectors", kInvalid, [](Asked& r) { r.set_num_vectors(4097); }},
      {"dimensions", kInvalid, [](Asked& r) { r.set_dimensions(-1); }},
      {"dimensions", kInvalid, [](Asked& r) { r.set_dimensions(100'000); }},
      {"num_heads", kInvalid, [](Asked& r) { r.set_num_heads(-1); }},
      {"dtype", kInvalid, [](Asked& r) { r.set_dtype(v1::DATA_TYPE_BOOL); }},
      {"dtype", kInvalid, [](Asked& r) { r.set_dtype(v1::DataType(9)); }},
      {"block_size", kInvalid, [](Asked& r) { r.set_block_size(-1); }},
      {"threads", kInvalid, [](Asked& r) { r.set_threads(3); }},
      {"repetitions", kInvalid, [](Asked& r) { r.set_repetitions(100'000); }},
      {"<none>", absl::StatusCode::kResourceExhausted,
       [](Asked& r) {
         r.set_num_vectors(4096);
         r.set_num_heads(1'000'000);
       }},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.field);
    Asked request = Small();
    test.spoil(request);
    const Refusal refusal =
        RefusalOf(Run(request, admission_, stop_).result.status());
    EXPECT_EQ(refusal.code, static_cast<int>(test.code)) << refusal.message;
    EXPECT_EQ(refusal.field, test.field) << refusal.message;
  }
}

// Receives the messages of a stream, at the speed that the test chooses.
class FakeSink : public MessageSink {
 public:
  void Write(OutgoingMessage message) override {
    v1::BenchmarkResponse event;
    EXPECT_TRUE(event.ParseFromString(Join(message)));
    const std::lock_guard lock(mutex_);
    events.push_back(event);
    changed_.notify_all();
  }
  void Finish(const absl::Status& status) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(finished);
    finished = status;
    changed_.notify_all();
  }
  int64_t sent_bytes() override { return 0; }
  void Break(const std::string& why) override {
    const std::lock_guard lock(mutex_);
    broken = why;
    changed_.notify_all();
  }
  // Waits until there are `count` events or the call is over. Returns whether
  // it is over. Then the call does not use the sink any more.
  bool IsOver(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return events.size() >= count || finished; });
    return finished.has_value();
  }

  std::vector<v1::BenchmarkResponse> events;
  std::optional<absl::Status> finished;
  std::optional<std::string> broken;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

class BenchmarkCallTest : public BenchmarkTest {
 protected:
  std::shared_ptr<BenchmarkCall> Call(FakeSink& sink) {
    return std::make_shared<BenchmarkCall>(context_, runner_, sink,
                                           SteadyTime::max(), Now);
  }
  // The time that calls see. It stands still until the test moves it.
  static SteadyTime Now() { return now_; }
  static void Pass(std::chrono::seconds time) { now_ = now_.load() + time; }
  // Reads the stream to its end. `ok` says whether the writes succeed.
  static void ReadAll(BenchmarkCall& call, FakeSink& sink, bool ok) {
    for (size_t count = 1; !sink.IsOver(count); ++count) call.OnWritten(ok);
  }
  static ReceivedMessage Message(const v1::BenchmarkRequest& request) {
    return InSlices(request.SerializeAsString(), 10, 1);
  }

  ServiceContext context_{engine_, admission_, 1LL << 28, 4096};
  BenchmarkRunner runner_;

 private:
  inline static std::atomic<SteadyTime> now_ = std::chrono::steady_clock::now();
};

TEST_F(BenchmarkCallTest, AnswersProgressThenOneResult) {
  FakeSink sink;
  const auto call = Call(sink);
  call->Start(Message(Small()));
  ReadAll(*call, sink, true);
  EXPECT_TRUE(sink.finished->ok());
  ASSERT_GE(sink.events.size(), 2U);
  for (size_t i = 0; i + 1 < sink.events.size(); ++i) {
    EXPECT_TRUE(sink.events[i].has_progress());
  }
  EXPECT_TRUE(sink.events.back().has_result());
}

TEST_F(BenchmarkCallTest, OneRunsAtATime) {
  v1::BenchmarkRequest endless = Small();
  endless.set_num_vectors(4096);
  endless.set_repetitions(300);  // just below the limit of work
  FakeSink first_sink;
  const auto first = Call(first_sink);
  first->Start(Message(endless));
  FakeSink second_sink;
  Call(second_sink)->Start(Message(Small()));
  ASSERT_TRUE(second_sink.finished);
  EXPECT_EQ(RefusalOf(*second_sink.finished).reason, "TOO_MANY_REQUESTS");
  EXPECT_GT(RefusalOf(*second_sink.finished).retry_ms, 0);
  // A client that does not read must not make others wait.
  first->Cancel();
  ReadAll(*first, first_sink, true);
  EXPECT_EQ(first_sink.finished->code(), absl::StatusCode::kCancelled);
}

TEST_F(BenchmarkCallTest, ASystemWithoutThreadsKeepsNobodyOutForEver) {
  {
    const testing::DefaultStackBytes none(testing::DefaultStackBytes::kNone);
    FakeSink sink;
    Call(sink)->Start(Message(Small()));
    ASSERT_TRUE(sink.finished);
    EXPECT_EQ(RefusalOf(*sink.finished).reason, "THREAD_LIMIT");
  }
  FakeSink sink;
  const auto call = Call(sink);
  call->Start(Message(Small()));
  ReadAll(*call, sink, true);
  EXPECT_TRUE(sink.finished->ok()) << *sink.finished;
}

TEST_F(BenchmarkCallTest, OneThatIsNotReadKeepsNeitherSlotNorBudget) {
  FakeSink sink;
  auto call = Call(sink);
  call->Start(Message(Small()));
  ASSERT_FALSE(sink.IsOver(1));
  // The client does not read the first message, so the result waits.
  ASSERT_TRUE(Eventually([&] { return admission_.usage().in_flight == 0; }));
  EXPECT_LE(admission_.usage().bytes, 4096);

  call->EndIfSilent(seconds(10));
  Pass(seconds(9));
  call->EndIfSilent(seconds(10));
  EXPECT_FALSE(sink.broken);
  Pass(seconds(1));
  call->EndIfSilent(seconds(10));
  ASSERT_TRUE(sink.broken);
  EXPECT_NE(sink.broken->find("--stream-idle-timeout"), std::string::npos);
  EXPECT_FALSE(sink.finished);  // the write is still outstanding
  call->OnWritten(false);
  // The write of the result then fails as well.
  if (!sink.IsOver(2)) call->OnWritten(false);
  EXPECT_TRUE(sink.IsOver(3));
  // A result that the client did not get is no success.
  EXPECT_EQ(sink.finished->code(), absl::StatusCode::kCancelled);
  call.reset();
  // The benchmark's own thread holds the call until it has ended.
  EXPECT_TRUE(Eventually([&] { return admission_.usage().reservations == 0; }));
}

TEST_F(BenchmarkCallTest, OneThatIsReadSlowlyGoesOn) {
  FakeSink sink;
  const auto call = Call(sink);
  call->Start(Message(Small()));
  for (size_t count = 1; !sink.IsOver(count); ++count) {
    Pass(seconds(9));
    call->EndIfSilent(seconds(10));
    EXPECT_FALSE(sink.broken);
    call->OnWritten(true);
  }
  EXPECT_TRUE(sink.finished->ok());
}

TEST_F(BenchmarkCallTest, ABrokenStreamStopsIt) {
  v1::BenchmarkRequest endless = Small();
  endless.set_num_vectors(4096);
  endless.set_repetitions(300);  // just below the limit of work
  FakeSink sink;
  const auto call = Call(sink);
  call->Start(Message(endless));
  ReadAll(*call, sink, false);
  EXPECT_EQ(sink.finished->code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace attnd::server
