// The core as a share of what the silicon can do: every case interleaved with
// the FMA peak and the stream bandwidth of the same threads, medians of ratios.
// Absolute times on shared machines swing; ratios within one run do not.
#include <sched.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bench/records.h"
#include "bench/stream_bandwidth.h"
#include "core/attention_engine.h"
#include "core/fma_peak.h"
#include "core/naive_attention.h"
#include "core/workspace.h"

namespace attnd::bench {
namespace {

using std::chrono::duration;
using std::chrono::milliseconds;

struct Case {
  std::string name;
  int64_t heads = 1;
  int64_t len = 0;  // q_len = kv_len
  int64_t head_dim = 128;
  bool causal = false;
  int64_t window = 0;  // keys that a row sees at most; 0 = all
  int threads = 1;
  bool naive = false;  // beside it, interleaved
};

struct Flags {
  std::string json_path;
  std::string filter;
  int min_samples = 5;
  double seconds_per_case = 1.0;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const int threads : {1, 2}) {
    if (threads > AvailableThreads()) break;
    cases.push_back({.name = "short",
                     .heads = 32,
                     .len = 128,
                     .head_dim = 64,
                     .threads = threads});
    for (const bool causal : {false, true}) {
      for (const int64_t head_dim : {64, 128}) {
        for (int64_t len = 128; len <= 16384; len *= 2) {
          cases.push_back({.name = causal ? "prefill_causal" : "prefill",
                           .heads = len <= 1024 ? 8 : 1,
                           .len = len,
                           .head_dim = head_dim,
                           .causal = causal,
                           .threads = threads});
        }
      }
    }
    cases.push_back({.name = "window",
                     .len = 4096,
                     .causal = true,
                     .window = 1024,
                     .threads = threads});
    for (const auto& [head_dim, len] :
         std::map<int64_t, int64_t>{{80, 1000}, {96, 1537}, {100, 777}}) {
      cases.push_back({.name = "odd",
                       .heads = 8,
                       .len = len,
                       .head_dim = head_dim,
                       .threads = threads});
    }
    for (int64_t len = 256; len <= 8192; len *= 2) {
      cases.push_back({.name = "over_naive",
                       .len = len,
                       .head_dim = 128,
                       .threads = threads,
                       .naive = true});
    }
  }
  return cases;
}

// Random inputs and room for the outputs of one case, aligned as a server's.
class Tensors {
 public:
  explicit Tensors(const AttentionProblem& problem)
      : query_(Fill(problem.query_bytes())),
        key_(Fill(problem.key_bytes())),
        value_(Fill(problem.value_bytes())),
        output_(Fill(problem.output_bytes())) {}

  AttentionBuffers buffers() const {
    return {.query = query_.floats(),
            .key = key_.floats(),
            .value = value_.floats(),
            .output = output_.floats(),
            .lse = nullptr};
  }

 private:
  Workspace Fill(int64_t bytes) {
    Workspace to = Workspace::Reserve(bytes).value();
    std::generate_n(to.floats(), bytes / 4, [&] { return normal_(rng_); });
    return to;
  }

  std::mt19937 rng_{1};
  std::normal_distribution<float> normal_;
  Workspace query_, key_, value_, output_;
};

AttentionOptions OptionsOf(const Case& c) {
  AttentionOptions options;
  if (c.causal) options.causal = Causal::kTopLeft;
  if (c.window > 0) options.window_left = c.window - 1;
  return options;
}

double Seconds(const RunStats& stats) {
  return duration<double>(stats.compute_time).count();
}

class Bench {
 public:
  explicit Bench(Flags flags) : flags_(std::move(flags)) {}

  // One record, and one more for the naive baseline where it is wanted.
  std::vector<Json> Measure(const Case& c) {
    AttentionEngine& engine = EngineOf(c.threads);
    const TensorSpec spec{.dtype = DataType::kF32,
                          .shape = {c.heads, c.len, c.head_dim}};
    const AttentionProblem problem =
        AttentionProblem::Create(spec, spec, spec, OptionsOf(c)).value();
    const MemoryEstimate estimate =
        engine.estimator().Estimate(problem).value();
    const Tensors tensors(problem);
    const auto flops = static_cast<double>(estimate.flops);
    const auto bytes =
        static_cast<double>(estimate.input_bytes + estimate.output_bytes);

    // A sample is a burst of calls that lasts long against the clock and the
    // wake-up of a worker, between two measurements of the peak.
    const RunStats first = engine.Run(problem, tensors.buffers()).value();
    const int burst =
        std::clamp(static_cast<int>(0.02 / Seconds(first)), 1, 64);
    std::vector<double> seconds, peaks, ratios, naive_seconds, speedups,
        naive_ratios;
    const double stream = stream_.Measure(engine.scheduler());
    double spent = 0;
    double before = Peak(engine);
    while (seconds.size() < static_cast<size_t>(flags_.min_samples) ||
           (spent < flags_.seconds_per_case && seconds.size() < 101)) {
      double time = 0;
      for (int i = 0; i < burst; ++i) {
        time += Seconds(engine.Run(problem, tensors.buffers()).value());
      }
      time /= burst;
      const double after = Peak(engine);
      const double peak = (before + after) / 2;
      seconds.push_back(time);
      peaks.push_back(peak);
      ratios.push_back(flops / time / peak);
      spent += time * burst;
      before = after;
      if (c.naive) {
        const double naive =
            Seconds(NaiveAttention(engine, problem, tensors.buffers()).value());
        naive_seconds.push_back(naive);
        speedups.push_back(naive / time);
        naive_ratios.push_back(flops / naive / peak);
        spent += naive;
        before = Peak(engine);
      }
    }
    const auto record = [&](const std::string& name, double time, double ratio,
                            int64_t held_bytes) {
      return Json{{"name", name},
                  {"dtype", "f32"},
                  {"batch", 1},
                  {"q_heads", c.heads},
                  {"kv_heads", c.heads},
                  {"q_len", c.len},
                  {"kv_len", c.len},
                  {"head_dim", c.head_dim},
                  {"causal", c.causal},
                  {"window", c.window},
                  {"threads", c.threads},
                  {"isa", IsaName(first.isa)},
                  {"gflops", flops / time / 1e9},
                  {"peak_gflops", Median(peaks) / 1e9},
                  {"peak_ratio", ratio},
                  {"gbytes_per_s", bytes / time / 1e9},
                  {"stream_ratio", bytes / time / stream},
                  {"time_ms", time * 1e3},
                  {"held_bytes", held_bytes},
                  {"samples", seconds.size()}};
    };
    std::vector<Json> records = {
        record(c.name, Median(seconds), Median(ratios), estimate.flash_bytes)};
    if (c.naive) {
      records.push_back(record("naive", Median(naive_seconds),
                               Median(naive_ratios), estimate.naive_bytes));
      records.front()["speedup"] = Median(speedups);
    }
    return records;
  }

 private:
  // A single worker stays on one processor, so that the peak measured beside a
  // case is that of the core which ran it. Workers inherit their maker's mask.
  AttentionEngine& EngineOf(int threads) {
    std::unique_ptr<AttentionEngine>& engine = engines_[threads];
    if (engine) return *engine;
    cpu_set_t all;
    sched_getaffinity(0, sizeof(all), &all);
    if (threads == 1) {
      size_t last = CPU_SETSIZE - 1;
      while (!CPU_ISSET(last, &all)) --last;
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(last, &one);
      sched_setaffinity(0, sizeof(one), &one);
    }
    engine =
        std::make_unique<AttentionEngine>(EngineOptions{.threads = threads});
    sched_setaffinity(0, sizeof(all), &all);
    return *engine;
  }

  static double Peak(AttentionEngine& engine) {
    return MeasureFmaPeak(engine.machine().isa, milliseconds(10),
                          engine.scheduler(), engine.threads());
  }

  Flags flags_;
  StreamBandwidth stream_;
  std::map<int, std::unique_ptr<AttentionEngine>> engines_;
};

void PrintRow(const Json& r) {
  std::printf("%-15s %4lld %7lld %5lld %4lld  %8.1f %8.1f  %6.3f",
              r["name"].get<std::string>().c_str(),
              r["q_heads"].get<long long>(), r["q_len"].get<long long>(),
              r["head_dim"].get<long long>(), r["threads"].get<long long>(),
              r["gflops"].get<double>(), r["peak_gflops"].get<double>(),
              r["peak_ratio"].get<double>());
  if (r.contains("speedup")) {
    std::printf("  %5.1fx naive", r["speedup"].get<double>());
  }
  std::printf("\n");
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "Times the attention core against this machine's FMA peak and stream "
      "bandwidth.\nA peak above 1.03 of itself means a broken measurement and "
      "fails the run.");
  app.add_option("--json", flags.json_path, "Write the records to this file");
  app.add_option("--filter", flags.filter,
                 "Only cases whose name contains this");
  app.add_option("--samples", flags.min_samples, "At least this many a case")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.seconds_per_case,
                 "Go on sampling a case for this long")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  Bench bench(flags);
  Json out = {{"machine", MachineRecord()}, {"records", Json::array()}};
  std::printf("%s\n%-15s %4s %7s %5s %4s  %8s %8s  %6s\n",
              out["machine"].dump().c_str(), "name", "head", "len", "dim",
              "thr", "GFLOP/s", "peak", "share");
  bool broken = false;
  for (const Case& c : Cases()) {
    if (c.name.find(flags.filter) == std::string::npos) continue;
    for (Json& record : bench.Measure(c)) {
      PrintRow(record);
      broken |= record["peak_ratio"].get<double>() > 1.03;
      out["records"].push_back(std::move(record));
    }
  }
  if (!flags.json_path.empty() && !WriteJson(out, flags.json_path)) return 1;
  if (broken) {
    std::cerr << "core_bench: a case exceeds the FMA peak by over 3 %; the "
                 "peak was measured wrong\n";
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace attnd::bench

int main(int argc, char** argv) {
  try {
    return attnd::bench::Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "core_bench: " << error.what() << "\n";
    return 1;
  }
}
