// Handles one call of the rpc Benchmark. A thread of its own measures, and a
// stream of messages reports progress and the result to the client. Does not
// use gRPC.
#ifndef ATTND_SERVER_CALLS_BENCHMARK_CALL_H_
#define ATTND_SERVER_CALLS_BENCHMARK_CALL_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/tile_scheduler.h"
#include "server/calls/benchmark.h"
#include "server/calls/message_stream.h"
#include "server/calls/service_context.h"
#include "server/calls/silence_watch.h"
#include "server/calls/stall_timer.h"
#include "server/memory/admission.h"
#include "wire/received_message.h"

namespace attnd::server {

// Runs benchmarks in a thread of its own, and only one at a time, because two
// would disturb each other's times. Thread-safe. The destructor waits until the
// thread ends.
class BenchmarkRunner {
 public:
  BenchmarkRunner() = default;
  ~BenchmarkRunner();

  // Starts to run `work` in the thread. When `work` returns, the next benchmark
  // may begin; the thread then calls the function that `work` returned. Returns
  // RESOURCE_EXHAUSTED with RetryInfo if another benchmark is running or the
  // system does not start a thread.
  using Afterwards = std::function<void()>;
  absl::Status Start(std::function<Afterwards()> work);

 private:
  std::mutex mutex_;
  bool busy_ = false;
  std::thread thread_;
};

// One call of Benchmark. The rpc and the thread of the benchmark both hold a
// shared pointer to it. It writes a message only after the client has read the
// previous one.
class BenchmarkCall : public std::enable_shared_from_this<BenchmarkCall>,
                      public WatchedCall {
 public:
  using Clock = SteadyTime (*)();

  // `context` and `runner` must outlive the call. `sink` must exist until this
  // call has called its Finish. `clock` is for tests. `caller` is the number of
  // who calls (Admission::Admit).
  BenchmarkCall(const ServiceContext& context, BenchmarkRunner& runner,
                MessageSink& sink, SteadyTime deadline,
                Clock clock = std::chrono::steady_clock::now,
                uint64_t caller = 0)
      : context_(context),
        runner_(runner),
        sink_(sink),
        clock_(clock),
        caller_(caller),
        stop_(deadline) {}

  ~BenchmarkCall() override;

  // Decodes the request and starts the benchmark.
  void Start(const ReceivedMessage& received);
  // Call this when the message passed to MessageSink::Write has been sent. `ok`
  // is false if the stream is broken.
  void OnWritten(bool ok);
  // Stops the benchmark as soon as possible. Thread-safe. You can call this at
  // any time.
  void Cancel() { stop_.Cancel(); }
  // Ends the call if its client has not read a message for `timeout`.
  void EndIfSilent(std::chrono::nanoseconds timeout) override;

  // Returns how flash attention was computed. Call it when the call ends. It
  // means something only if the call succeeded.
  const RunStats& stats() const { return stats_; }

 private:
  absl::Status Begin(const ReceivedMessage& received);
  void Progress(const v1::BenchmarkProgress& progress);
  void Complete(absl::StatusOr<BenchmarkOutcome> outcome);
  // Writes the next message that is ready, or finishes the stream. Does nothing
  // while an earlier message is still being sent. Of the progress reports that
  // came meanwhile, it writes only the last one, so that messages do not pile
  // up if the client is slow.
  void Pump();

  const ServiceContext& context_;
  BenchmarkRunner& runner_;
  MessageSink& sink_;
  const Clock clock_;
  const uint64_t caller_;
  StopSignal stop_;
  Admission::Reservation reservation_;
  std::optional<BenchmarkSpec> spec_;

  std::mutex mutex_;
  bool busy_ = false;  // a message is being sent, or the call is over
  StallTimer timer_;   // measures how long it takes to send a message
  // MessageSink::Break is running. Finish has to wait, because the sink may be
  // destroyed after it.
  bool breaking_ = false;
  std::optional<v1::BenchmarkProgress> progress_;
  std::optional<v1::BenchmarkResult> result_;
  RunStats stats_;
  std::optional<absl::Status> status_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_BENCHMARK_CALL_H_
