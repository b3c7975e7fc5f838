#include "server/calls/benchmark_call.h"

#include <chrono>
#include <system_error>
#include <utility>

#include "base/field_error.h"
#include "base/status_macros.h"
#include "base/tsan_ordering.h"
#include "server/calls/unary_answer.h"
#include "server/codec/message_parser.h"
#include "server/status/status_convert.h"
#include "wire/message_sizes.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

// Benchmarks take seconds.
constexpr std::chrono::milliseconds kRetryDelay{1000};

}  // namespace

BenchmarkRunner::~BenchmarkRunner() {
  if (thread_.joinable()) thread_.join();
}

absl::Status BenchmarkRunner::Start(std::function<Afterwards()> work) {
  const std::lock_guard lock(mutex_);
  if (busy_) {
    return WithRetryDelay(WithReason(absl::ResourceExhaustedError(
                                         "another benchmark is running, and "
                                         "only one can run at a time"),
                                     kTooManyRequests),
                          kRetryDelay);
  }
  // The previous thread can at most still be calling `afterwards`.
  if (thread_.joinable()) thread_.join();
  try {
    thread_ = std::thread([this, work = std::move(work)]() mutable {
      const Afterwards afterwards = work();
      work = nullptr;
      {
        const std::lock_guard end_lock(mutex_);
        busy_ = false;
      }
      afterwards();
    });
  } catch (const std::system_error& error) {
    return NoThreadError(error);
  }
  // The thread sets this to false only after it gets this lock.
  busy_ = true;
  return absl::OkStatus();
}

// gRPC orders the last event before the destructor, and this tells thread
// sanitizer.
BenchmarkCall::~BenchmarkCall() { TsanAcquire(&mutex_); }

void BenchmarkCall::Start(const ReceivedMessage& received) {
  if (absl::Status status = Begin(received); !status.ok()) {
    Complete(std::move(status));
  }
}

absl::Status BenchmarkCall::Begin(const ReceivedMessage& received) {
  ATTND_ASSIGN_OR_RETURN(
      reservation_, context_.admission.Admit(received.size_bytes(), caller_));
  v1::BenchmarkRequest request;
  ATTND_RETURN_IF_ERROR(ParseMessage(received, reservation_, request).status());
  ATTND_ASSIGN_OR_RETURN(spec_, DecodeBenchmark(request, context_));
  return runner_.Start([self = shared_from_this()] {
    absl::StatusOr<BenchmarkOutcome> outcome =
        RunBenchmark(*self->spec_, self->context_, self->reservation_,
                     self->stop_, [&](const v1::BenchmarkProgress& progress) {
                       self->Progress(progress);
                     });
    return [self, outcome = std::move(outcome)] { self->Complete(outcome); };
  });
}

void BenchmarkCall::Progress(const v1::BenchmarkProgress& progress) {
  {
    const std::lock_guard lock(mutex_);
    progress_ = progress;
  }
  Pump();
}

void BenchmarkCall::Complete(absl::StatusOr<BenchmarkOutcome> outcome) {
  {
    const std::lock_guard lock(mutex_);
    // Returns the bytes and the slot before the result is written, because
    // writing takes as long as the client likes. Returns the bytes first, so
    // that a call that finds the slot free also finds the bytes free.
    reservation_.ShrinkTo(kMessageEnvelopeBytes);
    reservation_.LeaveSlot();
    status_ = outcome.status();
    if (outcome.ok()) {
      result_ = std::move(outcome->result);
      stats_ = outcome->flash_stats;
    }
  }
  Pump();
}

void BenchmarkCall::OnWritten(bool ok) {
  if (!ok) stop_.Cancel();
  {
    const std::lock_guard lock(mutex_);
    busy_ = false;
    timer_.Stop(clock_());
    timer_.Complete(clock_());
    // The client did not get the result.
    if (!ok && status_ && status_->ok()) status_ = stop_.Check();
  }
  Pump();
}

void BenchmarkCall::EndIfSilent(std::chrono::nanoseconds timeout) {
  {
    const std::lock_guard lock(mutex_);
    const SteadyTime now = clock_();
    if (!timer_.IsOver(now, timeout)) return;
    timer_.Stop(now);
    breaking_ = true;
  }
  sink_.Break(UnreadText(timeout));
  {
    const std::lock_guard lock(mutex_);
    breaking_ = false;
  }
  Pump();
}

void BenchmarkCall::Pump() {
  v1::BenchmarkResponse event;
  std::optional<absl::Status> finish;
  {
    const std::lock_guard lock(mutex_);
    if (busy_ || breaking_) return;
    if (progress_ && !status_) {
      *event.mutable_progress() = *std::move(progress_);
      progress_.reset();
    } else if (result_) {
      *event.mutable_result() = *std::move(result_);
      result_.reset();
    } else if (status_) {
      finish = status_;
    } else {
      return;
    }
    busy_ = true;
    if (!finish) timer_.Start(clock_());
  }
  if (finish) {
    sink_.Finish(*finish);
  } else {
    sink_.Write(OutgoingMessage::Of(event));
  }
}

}  // namespace attnd::server
