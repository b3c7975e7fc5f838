// One Benchmark rpc: a thread that measures, and a stream that must not be
// written faster than the client reads. Knows no gRPC.
#ifndef ATTND_SERVER_CALLS_BENCHMARK_CALL_H_
#define ATTND_SERVER_CALLS_BENCHMARK_CALL_H_

#include <chrono>
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

// Runs one benchmark at a time, in its own thread: two would disturb each
// other's timings. Thread-safe. The destructor waits for it.
class BenchmarkRunner {
 public:
  BenchmarkRunner() = default;
  ~BenchmarkRunner();

  // Runs `work` in the thread, or refuses: RESOURCE_EXHAUSTED with RetryInfo.
  // `work` returns what is left to do once the next benchmark may begin.
  using Afterwards = std::function<void()>;
  absl::Status Start(std::function<Afterwards()> work);

 private:
  std::mutex mutex_;
  bool busy_ = false;
  std::thread thread_;
};

// Shared by its stream and its thread.
class BenchmarkCall : public std::enable_shared_from_this<BenchmarkCall>,
                      public WatchedCall {
 public:
  using Clock = SteadyTime (*)();

  // All but `deadline` must outlive the call; `sink` until its Finish.
  BenchmarkCall(const ServiceContext& context, BenchmarkRunner& runner,
                MessageSink& sink, SteadyTime deadline,
                Clock clock = std::chrono::steady_clock::now)
      : context_(context),
        runner_(runner),
        sink_(sink),
        clock_(clock),
        stop_(deadline) {}

  ~BenchmarkCall() override;

  void Start(const ReceivedMessage& received);
  // The outstanding write is over; `ok` is false where the stream is broken.
  void OnWritten(bool ok);
  // Thread-safe; may come at any time.
  void Cancel() { stop_.Cancel(); }
  // Ends the call if its client has not read a message for `timeout`.
  void EndIfSilent(std::chrono::nanoseconds timeout) override;

 private:
  absl::Status Begin(const ReceivedMessage& received);
  void Progress(absl::string_view phase, double fraction);
  void Complete(absl::StatusOr<v1::BenchmarkResult> result);
  // Writes what is due, unless a write is outstanding. Progress that was
  // overtaken is dropped, so nothing piles up before a slow client.
  void Pump();

  const ServiceContext& context_;
  BenchmarkRunner& runner_;
  MessageSink& sink_;
  const Clock clock_;
  StopSignal stop_;
  Admission::Reservation reservation_;
  std::optional<BenchmarkSpec> spec_;

  std::mutex mutex_;
  bool busy_ = false;      // a write is outstanding, or the call is finished
  StallTimer timer_;       // measures the outstanding write
  bool breaking_ = false;  // Break is being called, so the sink must stay
  std::optional<v1::BenchmarkProgress> progress_;
  std::optional<v1::BenchmarkResult> result_;
  std::optional<absl::Status> status_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_BENCHMARK_CALL_H_
