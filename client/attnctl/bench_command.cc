// Implements attnctl bench, which compares the speed and the memory of flash
// and naive attention on the server's host.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "client/attnctl/bench_forecast.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/interrupt.h"
#include "client/attnctl/option_flags.h"
#include "client/attnctl/sweep.h"

namespace attnd::attnctl {
namespace {

using client::BenchmarkOptions;

constexpr SweepAxis<BenchmarkOptions> kBenchAxes[] = {
    {"num-vectors", &BenchmarkOptions::num_vectors},
    {"dimensions", &BenchmarkOptions::dimensions},
    {"num-heads", &BenchmarkOptions::num_heads}};

struct BenchFlags {
  BenchmarkOptions options{.num_vectors = 4096};
  SweepFlags output;
};

// Shows how far a benchmark is. On a terminal, it redraws one line each second,
// because the server reports only when a phase begins. Elsewhere, it prints
// only a few lines, so that it does not fill a log.
class ProgressBar {
 public:
  explicit ProgressBar(Session& session) : session_(session) {}
  ~ProgressBar() {
    if (!redrawing_.joinable()) return;
    redrawing_.request_stop();
    redrawing_.join();
    session_.screen.Redraw("");
  }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `step` is what runs: a phase, or a value of a sweep. Elsewhere than on a
  // terminal, it is printed only once, although the phases take turns.
  void Show(const std::string& step, const BenchForecast::Progress& progress) {
    if (!session_.screen.err_is_terminal()) {
      Log(step, progress);
      return;
    }
    const std::lock_guard lock(mutex_);
    step_ = step;
    progress_ = progress;
    shown_at_ = std::chrono::steady_clock::now();
    Redraw();
    if (!redrawing_.joinable()) {
      redrawing_ = std::jthread([this](const std::stop_token& stop) {
        std::unique_lock wait_lock(mutex_);
        // No one notifies: this waits for a second, or until the end.
        while (!changed_.wait_for(wait_lock, stop, std::chrono::seconds(1),
                                  [&stop] { return stop.stop_requested(); })) {
          Redraw();
        }
      });
    }
  }

 private:
  static constexpr int kCells = 16;

  static std::string Left(const BenchForecast::Progress& progress) {
    if (!progress.seconds_left) return "";
    return absl::StrCat(", ", FormatTimeLeft(*progress.seconds_left), " left");
  }

  void Log(const std::string& step, const BenchForecast::Progress& progress) {
    if (logged_.insert(step).second) {
      session_.screen.PrintError(absl::StrCat("attnctl bench: ", step));
    }
    const auto quarters = static_cast<int>(progress.fraction * 4);
    if (progress.seconds_left && quarters > logged_quarters_) {
      logged_quarters_ = quarters;
      session_.screen.PrintError(
          absl::StrFormat("attnctl bench: %.0f %% done%s",
                          progress.fraction * 100, Left(progress)));
    }
  }

  void Redraw() {
    const BenchForecast::Progress now =
        Advanced(progress_, std::chrono::duration<double>(
                                std::chrono::steady_clock::now() - shown_at_)
                                .count());
    const double fraction = std::clamp(now.fraction, 0.0, 1.0);
    const auto filled =
        static_cast<size_t>(std::lround(fraction * double{kCells}));
    session_.screen.Redraw(absl::StrFormat(
        "%-8s [%s%s] %3.0f %%%s", step_, std::string(filled, '#'),
        std::string(kCells - filled, '.'), fraction * 100, Left(now)));
  }

  Session& session_;
  std::set<std::string> logged_;
  int logged_quarters_ = 0;  // how many quarters of the whole

  std::mutex mutex_;  // also orders what is drawn
  std::condition_variable_any changed_;
  std::string step_;
  BenchForecast::Progress progress_;
  std::chrono::steady_clock::time_point shown_at_;
  std::jthread redrawing_;
};

// Returns the result as one line of text.
std::string Summary(const client::BenchmarkResult& result) {
  std::string line =
      absl::StrFormat("%d x %d: flash %.3g ms", result.num_queries,
                      result.dimensions, result.flash_time_ms);
  if (result.naive_time_ms && result.speedup) {
    const double speedup = *result.speedup;
    absl::StrAppendFormat(&line, ", naive %.3g ms: %.2fx %s",
                          *result.naive_time_ms,
                          speedup >= 1 ? speedup : 1 / speedup,
                          speedup >= 1 ? "faster" : "slower");
  } else {
    absl::StrAppend(&line, ", naive would not fit in memory");
  }
  const double reduction = result.memory_reduction;
  absl::StrAppendFormat(&line, ", %.1f %% %s memory (%s, naive %s)",
                        std::abs(reduction) * 100,
                        reduction >= 0 ? "less" : "more",
                        FormatBytesShort(result.flash_peak_bytes),
                        FormatBytesShort(result.naive_peak_bytes));
  absl::StrAppendFormat(
      &line,
      "; %.1f GFLOP/s = %.0f %% of FMA peak on %s, %d thread%s; worst error "
      "%.1e",
      result.gflops, result.peak_ratio * 100, result.stats.isa,
      result.stats.threads, result.stats.threads == 1 ? "" : "s",
      result.max_abs_error);
  absl::StrAppendFormat(&line, "; median of %d run%s", result.repetitions,
                        result.repetitions == 1 ? "" : "s");
  return line;
}

Json ResultJson(const BenchmarkOptions& options,
                const client::BenchmarkResult& result) {
  Json json;
  if (result.naive_time_ms) json["naive_time_ms"] = *result.naive_time_ms;
  json["flash_time_ms"] = result.flash_time_ms;
  if (result.speedup) json["speedup"] = *result.speedup;
  json["memory_reduction"] = result.memory_reduction;
  json["num_queries"] = result.num_queries;
  json["dimensions"] = result.dimensions;
  json["num_heads"] = std::max<int64_t>(options.num_heads, 1);
  json["dtype"] = TypeName(options.dtype);
  json["max_abs_error"] = result.max_abs_error;
  json["max_rel_error"] = result.max_rel_error;
  json["gflops"] = result.gflops;
  json["peak_gflops"] = result.peak_gflops;
  json["peak_ratio"] = result.peak_ratio;
  json["naive_peak_bytes"] = result.naive_peak_bytes;
  json["flash_peak_bytes"] = result.flash_peak_bytes;
  json["repetitions"] = result.repetitions;
  json["stats"] = StatsJson(result.stats);
  return json;
}

// Makes bench wait for a server that starts later, but not forever. The pauses
// between this many attempts add up to about a minute.
constexpr client::RetryPolicy kRetryForAMinute = {.max_attempts = 32};

client::AttentionClient ConnectForBench(Session& session) {
  return session.Connect(absl::InfiniteDuration(), session.deadline_seconds
                                                       ? client::RetryPolicy()
                                                       : kRetryForAMinute);
}

ExitCode RunBench(const BenchFlags& flags, Session& session) {
  absl::StatusOr<client::BenchmarkResult> result;
  {
    ProgressBar bar(session);
    result = ConnectForBench(session).Benchmark(
        flags.options, [&bar](const client::BenchmarkProgress& progress) {
          bar.Show(progress.phase, {std::clamp(progress.fraction, 0.0, 1.0),
                                    progress.seconds_left});
          return true;
        });
  }
  if (!result.ok()) return session.CallError(result.status());
  if (flags.output.json) {
    session.screen.PrintJson(ResultJson(flags.options, *result));
  } else {
    session.screen.Print(Summary(*result));
  }
  return kOk;
}

SweepReport EmptyReport(const Sweep& sweep) {
  SweepReport report{
      .title = "Speed and memory of attention",
      .columns = {sweep.Field(), "flash ms", "naive ms", "speedup",
                  "flash memory", "naive memory", "GFLOP/s"}};
  for (const auto& [title, unit] :
       {std::pair("Time of one run", ChartUnit::kMilliseconds),
        std::pair("Most memory held", ChartUnit::kBytes)}) {
    report.charts.push_back({.title = title,
                             .x_label = sweep.Field(),
                             .x = {.is_log = sweep.doubles},
                             .y = {.unit = unit, .is_log = sweep.doubles},
                             .series = {{.name = "flash"}, {.name = "naive"}}});
  }
  return report;
}

// Adds one result to the report.
void AddTo(SweepReport& report, const Sweep& sweep, int64_t value,
           const BenchmarkOptions& options,
           const client::BenchmarkResult& result) {
  report.table.push_back(
      {absl::StrCat(value), absl::StrFormat("%.4g", result.flash_time_ms),
       result.naive_time_ms ? absl::StrFormat("%.4g", *result.naive_time_ms)
                            : "does not fit",
       result.speedup ? absl::StrFormat("%.2f", *result.speedup) : "-",
       FormatBytesShort(result.flash_peak_bytes),
       FormatBytesShort(result.naive_peak_bytes),
       absl::StrFormat("%.1f", result.gflops)});
  // The keys of all rows are the same, also if naive attention does not fit.
  Json row = {{sweep.Field(), value},
              {"naive_time_ms", nullptr},
              {"flash_time_ms", nullptr},
              {"speedup", nullptr}};
  row.update(ResultJson(options, result));
  report.rows.push_back(std::move(row));

  const auto add_point = [&](size_t chart, size_t series, double y) {
    report.charts[chart].series[series].points.push_back(
        {static_cast<double>(value), y});
  };
  add_point(0, 0, result.flash_time_ms);
  if (result.naive_time_ms) add_point(0, 1, *result.naive_time_ms);
  add_point(1, 0, static_cast<double>(result.flash_peak_bytes));
  add_point(1, 1, static_cast<double>(result.naive_peak_bytes));
}

// Runs the benchmarks of a sweep until one fails or `stop` asks to stop.
// Returns the error of that one.
absl::Status MeasureSweep(BenchmarkOptions options, const Sweep& sweep,
                          const std::stop_token& stop, SweepReport& report,
                          Session& session) {
  const client::AttentionClient client = ConnectForBench(session);
  BenchForecast forecast(
      std::vector<double>(sweep.values.begin(), sweep.values.end()),
      sweep.axis == "num-vectors" ? 2 : 1);
  ProgressBar bar(session);
  for (size_t i = 0; i < sweep.values.size(); ++i) {
    const int64_t value = sweep.values[i];
    options.*sweep.SizeIn(kBenchAxes) = value;
    const auto begin = std::chrono::steady_clock::now();
    const auto seconds = [begin] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() -
                                           begin)
          .count();
    };
    const auto result = client.Benchmark(
        options,
        [&](const client::BenchmarkProgress& progress) {
          bar.Show(absl::StrFormat("%s = %d (%d of %d)", sweep.Field(), value,
                                   i + 1, sweep.values.size()),
                   forecast.At(seconds(), progress));
          return true;
        },
        stop);
    ATTND_RETURN_IF_ERROR(result.status());
    forecast.End(seconds(), *result);
    AddTo(report, sweep, value, options, *result);
  }
  return absl::OkStatus();
}

// Prints what was measured, also if a benchmark fails or the user stops it.
ExitCode RunBenchSweep(const BenchFlags& flags, Session& session) {
  auto output = SweepOutput::Open(flags.output, session);
  if (!output.ok()) return session.FileError(output.status());
  const Sweep& sweep = *flags.output.sweep;
  SweepReport report = EmptyReport(sweep);
  absl::Status failure;
  bool interrupted = false;
  {
    const Interrupt interrupt;
    failure =
        MeasureSweep(flags.options, sweep, interrupt.token(), report, session);
    interrupted = !failure.ok() && interrupt.token().stop_requested();
  }
  const ExitCode printed = output->Print(report);
  if (failure.ok()) return printed;
  session.screen.PrintError(absl::StrFormat(
      "attnctl bench: the sweep ended at %s = %d, after %d of %d benchmarks%s",
      sweep.Field(), sweep.values[report.rows.size()], report.rows.size(),
      sweep.values.size(), interrupted ? ", because it was interrupted" : ""));
  return interrupted ? kCallFailed : session.CallError(failure);
}

}  // namespace

void AddBenchCommand(CLI::App& app, Session& session) {
  CLI::App* command = app.add_subcommand(
      "bench",
      "Compare the speed and memory of flash and naive attention on the "
      "server's host");
  auto flags = std::make_shared<BenchFlags>();
  client::BenchmarkOptions& options = flags->options;
  AddNumberFlag(*command, "-n,--num-vectors", options.num_vectors,
                "number of queries, and also of keys")
      ->default_str(absl::StrCat(options.num_vectors));
  AddNumberFlag(*command, "--dimensions", options.dimensions,
                "head dimension; default: 128");
  AddNumberFlag(*command, "--num-heads", options.num_heads,
                "number of heads; default: 1");
  AddTypeFlag(*command, "--dtype", options.dtype,
              "type of the tensors; default: f32");
  AddNumberFlag(*command, "--block-size", options.block_size,
                "number of keys in a tile; default: the server chooses");
  AddNumberFlag(*command, "--threads", options.threads,
                "number of worker threads on the server; default: all of them");
  AddNumberFlag(*command, "--repetitions", options.repetitions,
                "number of timed runs; the result is their median; default: 5");
  AddSweepFlags(*command, kBenchAxes, flags->output);
  command->footer(
      "Without --deadline, a benchmark can take as long as it needs, but "
      "bench\n"
      "waits only about a minute for a server that has not started. The "
      "server\n"
      "ends a benchmark after its --max-benchmark-seconds, and returns what "
      "it\n"
      "has measured until then.\n"
      "A sweep that fails or that Ctrl-C stops prints what it has measured "
      "until\n"
      "then. Its exit code is not 0.\n"
      "Examples:\n"
      "  attnctl bench --num-vectors=8192 --dimensions=64 --threads=1\n"
      "  attnctl bench --sweep=num-vectors=1024..16384 --svg=bench.svg\n"
      "  attnctl bench --sweep=dimensions=32..256 --repetitions=3 --csv\n");
  command->callback([flags, &session] {
    session.exit_code = flags->output.sweep ? RunBenchSweep(*flags, session)
                                            : RunBench(*flags, session);
  });
}

}  // namespace attnd::attnctl
