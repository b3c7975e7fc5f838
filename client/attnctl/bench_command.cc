// Implements attnctl bench, which compares the speed and the memory of flash
// and naive attention on the server's host.
#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/option_flags.h"

namespace attnd::attnctl {
namespace {

struct BenchFlags {
  client::BenchmarkOptions options{.num_vectors = 4096};
  bool json = false;
};

// Shows how far a benchmark is. On a terminal, it redraws one line. Elsewhere,
// it prints one line for each phase, so that it does not fill a log.
class ProgressBar {
 public:
  explicit ProgressBar(Session& session) : session_(session) {}
  ~ProgressBar() {
    if (session_.screen.err_is_terminal()) session_.screen.Redraw("");
  }

  void Show(const client::BenchmarkProgress& progress) {
    if (session_.screen.err_is_terminal()) {
      const double fraction = std::clamp(progress.fraction, 0.0, 1.0);
      const auto filled =
          static_cast<size_t>(std::lround(fraction * double{kCells}));
      session_.screen.Redraw(absl::StrFormat(
          "%-8s [%s%s] %3.0f %%", progress.phase, std::string(filled, '#'),
          std::string(kCells - filled, '.'), fraction * 100));
    } else if (shown_.insert(progress.phase).second) {
      // Each phase is printed only once, although the phases take turns.
      session_.screen.PrintError(
          absl::StrCat("attnctl bench: ", progress.phase));
    }
  }

 private:
  static constexpr int kCells = 40;

  Session& session_;
  std::set<std::string> shown_;
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

Json ResultJson(const client::BenchmarkResult& result) {
  Json json;
  if (result.naive_time_ms) json["naive_time_ms"] = *result.naive_time_ms;
  json["flash_time_ms"] = result.flash_time_ms;
  if (result.speedup) json["speedup"] = *result.speedup;
  json["memory_reduction"] = result.memory_reduction;
  json["num_queries"] = result.num_queries;
  json["dimensions"] = result.dimensions;
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

ExitCode RunBench(const BenchFlags& flags, Session& session) {
  absl::StatusOr<client::BenchmarkResult> result;
  {
    ProgressBar bar(session);
    result = session
                 .Connect(absl::InfiniteDuration(), session.deadline_seconds
                                                        ? client::RetryPolicy()
                                                        : kRetryForAMinute)
                 .Benchmark(flags.options,
                            [&bar](const client::BenchmarkProgress& progress) {
                              bar.Show(progress);
                              return true;
                            });
  }
  if (!result.ok()) return session.CallError(result.status());
  if (flags.json) {
    session.screen.PrintJson(ResultJson(*result));
  } else {
    session.screen.Print(Summary(*result));
  }
  return kOk;
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
  command->add_flag("--json", flags->json, "print all measurements as JSON");
  command->footer(
      "Without --deadline, a benchmark can take as long as it needs, but "
      "bench\n"
      "waits only about a minute for a server that has not started. The "
      "server\n"
      "ends a benchmark after its --max-benchmark-seconds, and returns what "
      "it\n"
      "has measured until then.\n"
      "Example:\n"
      "  attnctl bench --num-vectors=8192 --dimensions=64 --threads=1\n");
  command->callback(
      [flags, &session] { session.exit_code = RunBench(*flags, session); });
}

}  // namespace attnd::attnctl
