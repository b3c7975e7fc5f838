#include "server/calls/benchmark.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "core/fma_peak.h"
#include "core/naive_attention.h"
#include "core/reference_attention.h"
#include "server/calls/benchmark_forecast.h"
#include "server/calls/benchmark_tensors.h"
#include "server/codec/response_codec.h"
#include "server/status/status_convert.h"
#include "wire/message_sizes.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

constexpr int64_t kMaxVerifiedRows = 256;
// How often one benchmark measures the arithmetic speed of the machine at most.
// Each measurement takes all threads for at least BenchmarkSpec::peak_time,
// even if the problem is small, and a request may ask for 1000 repetitions.
constexpr int64_t kMaxPeaks = 10;
// The share of a benchmark's time that preparations and measurements may take.
// The rest is for the verification.
constexpr double kMeasuringShare = 0.9;
// The shares of the machine's peak that the algorithms are expected to reach.
// They matter only to the progress of the first repetition.
constexpr double kFlashPeakShare = 0.5;
constexpr double kNaivePeakShare = 0.05;
// Relative errors are relative to at least this number.
constexpr double kMinExpected = 1e-6;
// After this time, other processes may have ended some of their threads.
constexpr std::chrono::milliseconds kThreadRetryDelay{1000};

double Median(std::vector<double> numbers) {
  const auto middle =
      numbers.begin() + static_cast<std::ptrdiff_t>(numbers.size() / 2);
  std::nth_element(numbers.begin(), middle, numbers.end());
  return *middle;
}

// One call of RunBenchmark.
class Run {
 public:
  Run(const BenchmarkSpec& spec, const ServiceContext& context,
      Admission::Reservation& reservation, const StopSignal& stop,
      const BenchmarkProgressFn& progress)
      : spec_(spec),
        max_time_(context.max_benchmark_time),
        reservation_(reservation),
        stop_(stop),
        progress_(progress),
        forecast_({.repetitions = spec.repetitions,
                   .peaks = MaxPeaks(),
                   .measuring_limit = Limit() * kMeasuringShare,
                   .limit = Limit()}),
        engine_(&context.engine) {}

  absl::StatusOr<BenchmarkOutcome> Execute() {
    absl::Status status = Prepare();
    for (int64_t i = 0; status.ok() && i < spec_.repetitions; ++i) {
      status = Repeat(i);
    }
    if (!status.ok()) {
      // If the call itself was ended, that matters more than the time limit.
      if (absl::Status over = stop_.Check(); !over.ok()) return over;
      if (measuring_.Check().ok()) return status;
      if (flash_ms_.empty()) return TimeLimitError();
      // The time is up. The result is what has been measured until now.
    }
    v1::BenchmarkResult result = Summarize();
    Begin(BenchmarkPhase::kVerify);
    ATTND_RETURN_IF_ERROR(Verify(result));
    return BenchmarkOutcome{std::move(result), flash_stats_};
  }

 private:
  int64_t MaxPeaks() const { return std::min(spec_.repetitions, kMaxPeaks); }

  // Returns how long everything may take.
  BenchmarkForecast::Seconds Limit() const {
    return max_time_.count() == 0 ? BenchmarkForecast::Plan().limit : max_time_;
  }

  // Reports that a phase begins.
  void Begin(BenchmarkPhase phase) {
    progress_(
        forecast_.Begin(phase, std::chrono::steady_clock::now() - start_));
  }

  // Returns the point in time that is `time` after the start, or the largest
  // one if the benchmark has no time limit.
  SteadyTime After(std::chrono::duration<double> time) const {
    return max_time_.count() == 0
               ? SteadyTime::max()
               : start_ +
                     std::chrono::duration_cast<SteadyTime::duration>(time);
  }

  absl::Status TimeLimitError() const {
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat(
            "no repetition finished within the ",
            std::chrono::duration<double>(max_time_).count(),
            " s that the server allows (--max-benchmark-seconds): reduce "
            "num_vectors, num_heads or dimensions, or raise that option")),
        kWorkLimit);
  }

  absl::Status Prepare() {
    Begin(BenchmarkPhase::kPrepare);
    ATTND_RETURN_IF_ERROR(ChooseEngine());
    const MemoryEstimate estimate =
        engine_->estimator().Estimate(spec_.problem);
    naive_bytes_ =
        engine_->estimator().Estimate(spec_.naive_problem).naive_bytes;
    flops_ = estimate.flops;
    const int64_t other_bytes = reservation_.bytes() + kMessageEnvelopeBytes;
    const int64_t tensor_bytes = estimate.input_bytes + estimate.output_bytes;
    const std::optional<int64_t> with_flash =
        CheckedSum({other_bytes, estimate.flash_bytes});
    if (!with_flash) return BytesOutOfRange();
    ATTND_RETURN_IF_ERROR(reservation_.GrowTo(*with_flash));
    // Naive attention computes in f32. If the problem is f32 as well, both use
    // the same tensors in turns. Otherwise naive attention needs its own.
    const bool needs_f32 = spec_.problem.params().query_dtype != DataType::kF32;
    const std::optional<int64_t> with_naive =
        CheckedSum({other_bytes, needs_f32 ? tensor_bytes : 0, naive_bytes_});
    naive_fits_ = with_naive && reservation_.GrowTo(*with_naive).ok();
    ATTND_ASSIGN_OR_RETURN(tensors_,
                           BenchmarkTensors::Make(spec_.problem, measuring_));
    if (needs_f32 && naive_fits_) {
      ATTND_ASSIGN_OR_RETURN(
          f32_tensors_,
          BenchmarkTensors::Make(spec_.naive_problem, measuring_));
    }
    ATTND_RETURN_IF_ERROR(FillInputs(
        tensors_, f32_tensors_ ? &*f32_tensors_ : nullptr, measuring_));
    ExpectVerification();
    return absl::OkStatus();
  }

  // Forecasts the time of the verification from that of one row.
  void ExpectVerification() {
    std::vector<double> output(
        static_cast<size_t>(spec_.problem.params().v_head_dim));
    double lse = 0;
    const SteadyTime begin = std::chrono::steady_clock::now();
    ReferenceAttentionRow(spec_.problem, tensors_.buffers(), /*entry=*/0,
                          /*head=*/0, /*q_row=*/0, output.data(), &lse);
    forecast_.Expect(BenchmarkPhase::kVerify,
                     (std::chrono::steady_clock::now() - begin) *
                         static_cast<double>(VerifiedRows()));
  }

  // Forecasts the times of the algorithms before the first of them has run.
  void ExpectAttention(double peak_flops_per_s) {
    const BenchmarkForecast::Seconds at_peak(static_cast<double>(flops_) /
                                             peak_flops_per_s);
    forecast_.Expect(BenchmarkPhase::kFlash, at_peak / kFlashPeakShare);
    if (naive_fits_) {
      forecast_.Expect(BenchmarkPhase::kNaive, at_peak / kNaivePeakShare);
    }
  }

  int64_t VerifiedRows() const {
    const AttentionParams& params = spec_.problem.params();
    return std::min(params.num_q_heads * params.q_len, kMaxVerifiedRows);
  }

  // Chooses the server's engine, or makes one if the benchmark has another
  // number of threads.
  absl::Status ChooseEngine() {
    if (spec_.threads == engine_->threads()) return absl::OkStatus();
    try {
      own_engine_.emplace(
          EngineOptions{.threads = static_cast<int>(spec_.threads),
                        .force_isa = engine_->machine().isa});
    } catch (const std::system_error& error) {
      return NoThreadError(error);
    }
    engine_ = &*own_engine_;
    return absl::OkStatus();
  }

  // Counts the repetition only if all of it ends in time.
  absl::Status Repeat(int64_t repetition) {
    // The machine is measured in the first repetition, and then in repetitions
    // that are spread evenly.
    if (static_cast<int64_t>(peaks_.size()) * spec_.repetitions <=
        repetition * MaxPeaks()) {
      Begin(BenchmarkPhase::kPeak);
      const double peak =
          MeasureFmaPeak(engine_->machine().isa, spec_.peak_time,
                         engine_->scheduler(), engine_->threads(), &measuring_);
      ATTND_RETURN_IF_ERROR(measuring_.Check());
      if (peaks_.empty()) ExpectAttention(peak);
      peaks_.push_back(peak);
    }
    Begin(BenchmarkPhase::kNaive);
    std::optional<double> naive_ms;
    if (naive_fits_) {
      const BenchmarkTensors& tensors = f32_tensors_ ? *f32_tensors_ : tensors_;
      ATTND_ASSIGN_OR_RETURN(const RunStats stats,
                             NaiveAttention(*engine_, spec_.naive_problem,
                                            tensors.buffers(), &measuring_));
      naive_ms = TimeMs(stats);
      naive_peak_bytes_ = std::max(
          naive_peak_bytes_, tensors.size_bytes() + stats.workspace_bytes);
    }
    Begin(BenchmarkPhase::kFlash);
    ATTND_ASSIGN_OR_RETURN(
        const RunStats stats,
        engine_->Run(spec_.problem, tensors_.buffers(), &measuring_));
    if (naive_ms) naive_ms_.push_back(*naive_ms);
    flash_ms_.push_back(TimeMs(stats));
    flash_stats_ = stats;
    flash_peak_bytes_ = std::max(flash_peak_bytes_,
                                 tensors_.size_bytes() + stats.workspace_bytes);
    return measuring_.Check();
  }

  // Returns the time from the first tile to the last. It does not include the
  // allocation of memory (the N x N scores of naive attention, or the
  // workspace), but it includes the page faults at the first touch of that
  // memory. Fresh memory is a part of what each algorithm costs, and naive
  // attention needs much more of it.
  static double TimeMs(const RunStats& stats) {
    return std::chrono::duration<double, std::milli>(stats.compute_time)
        .count();
  }

  v1::BenchmarkResult Summarize() const {
    v1::BenchmarkResult result;
    const double flash_ms = Median(flash_ms_);
    result.set_flash_time_ms(flash_ms);
    if (naive_fits_) {
      const double naive_ms = Median(naive_ms_);
      result.set_naive_time_ms(naive_ms);
      result.set_speedup(naive_ms / flash_ms);
    }
    const int64_t naive_bytes = naive_fits_ ? naive_peak_bytes_ : naive_bytes_;
    result.set_naive_peak_bytes(naive_bytes);
    result.set_flash_peak_bytes(flash_peak_bytes_);
    result.set_memory_reduction(1 - static_cast<double>(flash_peak_bytes_) /
                                        static_cast<double>(naive_bytes));
    result.set_num_queries(spec_.problem.params().q_len);
    result.set_dimensions(spec_.problem.params().head_dim);
    constexpr double kGiga = 1e9;
    const double seconds = flash_ms / 1e3;
    const double flops_per_s =
        static_cast<double>(flash_stats_.flops) / seconds;
    const double peak = Median(peaks_);
    result.set_gflops(flops_per_s / kGiga);
    result.set_peak_gflops(peak / kGiga);
    result.set_peak_ratio(flops_per_s / peak);
    *result.mutable_stats() = EncodeStats(flash_stats_);
    result.set_repetitions(static_cast<int64_t>(flash_ms_.size()));
    return result;
  }

  // Compares rows that are spread evenly over all rows with the reference
  // implementation. Compares fewer of them if the time is up, but at least one.
  // A run that was stopped may have written some rows again. It computed them
  // from the same inputs, so every row is still right.
  absl::Status Verify(v1::BenchmarkResult& result) const {
    const AttentionParams& params = spec_.problem.params();
    const int64_t rows = params.num_q_heads * params.q_len;
    const int64_t checked = VerifiedRows();
    // The step and the number of rows have no common divisor, so each row is
    // reached once. The step is large, so that the first few rows are spread as
    // well.
    int64_t step = checked * 5 / 8 + 1;
    while (std::gcd(step, checked) != 1) ++step;
    std::vector<double> expected(static_cast<size_t>(params.v_head_dim));
    double max_abs = 0;
    double max_rel = 0;
    for (int64_t i = 0; i < checked; ++i) {
      ATTND_RETURN_IF_ERROR(stop_.Check());
      if (i > 0 && verifying_.ShouldStop()) break;
      const int64_t row = i * step % checked * rows / checked;
      double lse = 0;
      ReferenceAttentionRow(spec_.problem, tensors_.buffers(), /*entry=*/0,
                            row / params.q_len, row % params.q_len,
                            expected.data(), &lse);
      for (size_t d = 0; d < expected.size(); ++d) {
        const double got =
            ReferenceElement(tensors_.output.data(), params.output_dtype,
                             row * params.v_head_dim + static_cast<int64_t>(d));
        const double error = std::abs(expected[d] - got);
        // The comparisons are written so that a NaN becomes the maximum.
        if (!(error <= max_abs)) max_abs = error;
        const double relative =
            error / std::max(std::abs(expected[d]), kMinExpected);
        if (!(relative <= max_rel)) max_rel = relative;
      }
    }
    result.set_max_abs_error(max_abs);
    result.set_max_rel_error(max_rel);
    return absl::OkStatus();
  }

  const BenchmarkSpec& spec_;
  const std::chrono::nanoseconds max_time_;  // for everything; 0: no limit
  const SteadyTime start_ = std::chrono::steady_clock::now();
  Admission::Reservation& reservation_;
  const StopSignal& stop_;  // stops the call
  // These end preparations and measurements, and the verification.
  const StopSignal measuring_{After(max_time_ * kMeasuringShare), &stop_};
  const StopSignal verifying_{After(max_time_), &stop_};
  const BenchmarkProgressFn& progress_;
  BenchmarkForecast forecast_;
  std::optional<AttentionEngine> own_engine_;
  AttentionEngine* engine_;

  int64_t flops_ = 0;  // of each algorithm
  bool naive_fits_ = false;
  BenchmarkTensors tensors_;
  // The tensors in f32, for naive attention. If unset, naive attention uses
  // tensors_.
  std::optional<BenchmarkTensors> f32_tensors_;
  std::vector<double> peaks_;
  std::vector<double> naive_ms_;
  std::vector<double> flash_ms_;
  RunStats flash_stats_;
  int64_t naive_bytes_ = 0;  // the estimate
  int64_t naive_peak_bytes_ = 0;
  int64_t flash_peak_bytes_ = 0;
};

}  // namespace

absl::Status NoThreadError(const std::system_error& error) {
  return WithRetryDelay(
      WithReason(
          absl::ResourceExhaustedError(absl::StrCat(
              "the system cannot start a thread for the benchmark (",
              error.what(),
              "): raise the server's limit of processes (pids.max of its "
              "cgroup, ulimit -u) or of memory")),
          kThreadLimit),
      kThreadRetryDelay);
}

absl::StatusOr<BenchmarkOutcome> RunBenchmark(
    const BenchmarkSpec& spec, const ServiceContext& context,
    Admission::Reservation& reservation, const StopSignal& stop,
    const BenchmarkProgressFn& progress) {
  const int64_t before = reservation.bytes();
  absl::StatusOr<BenchmarkOutcome> outcome =
      Run(spec, context, reservation, stop, progress).Execute();
  // The tensors have been freed, so a client that reads slowly must not keep
  // their bytes reserved.
  reservation.ShrinkTo(before + kMessageEnvelopeBytes);
  return outcome;
}

}  // namespace attnd::server
