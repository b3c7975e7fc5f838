// The core as a share of what the silicon can do: every case interleaved with
// the FMA peak or the stream bandwidth of the same threads, and with the cases
// that it is compared with; medians of ratios. Absolute times on shared
// machines swing; ratios within one run do not.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/core_bars.h"
#include "bench/core_case.h"
#include "bench/records.h"
#include "bench/stream_bandwidth.h"
#include "core/attention_engine.h"
#include "core/fma_peak.h"
#include "core/kernels/geometry.h"

namespace attnd::bench {
namespace {

using std::chrono::duration;
using std::chrono::milliseconds;

// Cases that take turns. Where there are more than one, each is also compared
// with the first.
using Group = std::vector<Case>;

struct Flags {
  std::string json_path;
  bool join = false;
  std::string filter;
  int min_samples = 5;
  double seconds_per_case = 1.0;
};

Case Square(const std::string& name, int64_t heads, int64_t len,
            int64_t head_dim, int threads = 1) {
  return {.name = name,
          .q_heads = heads,
          .kv_heads = heads,
          .q_len = len,
          .kv_len = len,
          .head_dim = head_dim,
          .threads = threads};
}

Case With(Case c, const auto& change) {
  change(c);
  return c;
}

void AddPrefill(int threads, std::vector<Group>& groups) {
  groups.push_back({Square("short", 32, 128, 64, threads)});
  for (const bool causal : {false, true}) {
    for (const int64_t head_dim : {64, 128}) {
      for (int64_t len = 128; len <= 16384; len *= 2) {
        Case c = Square(causal ? "prefill_causal" : "prefill",
                        len <= 1024 ? 8 : 1, len, head_dim, threads);
        c.causal = causal;
        groups.push_back({c});
      }
    }
  }
  for (const int64_t head_dim : {80, 96, 100}) {
    for (const int64_t len : {777, 1000, 1537}) {
      groups.push_back({Square("odd", 8, len, head_dim, threads)});
    }
  }
  for (int64_t len = 256; len <= 8192; len *= 2) {
    const Case c = Square("over_naive", 1, len, 128, threads);
    groups.push_back({c, With(c, [](Case& naive) {
                        naive.name = "naive";
                        naive.pass = Case::Pass::kNaive;
                      })});
  }
}

// One head from end to end, so that what is held has one slope.
void AddScaling(std::vector<Group>& groups) {
  for (const int64_t head_dim : {64, 128}) {
    for (int64_t len = 1024; len <= 32768; len *= 2) {
      groups.push_back({Square("scaling", 1, len, head_dim)});
    }
  }
}

void AddMasked(std::vector<Group>& groups) {
  const Case full = Square("masked", 1, 4096, 128);
  Case causal = full;
  causal.causal = true;
  Case window = causal;
  window.window = 1024;
  groups.push_back({full, causal, window});
}

void AddSixteenBit(std::vector<Group>& groups) {
  for (const int64_t head_dim : {64, 128}) {
    const Case f32 = Square("16_bit", 1, 4096, head_dim);
    Case f16 = f32;
    f16.dtype = DataType::kF16;
    Case bf16 = f32;
    bf16.dtype = DataType::kBF16;
    groups.push_back({f32, f16, bf16});
  }
}

void AddDecode(int threads, std::vector<Group>& groups) {
  for (const int64_t heads_per_group : {1, 4}) {
    for (const DataType dtype :
         {DataType::kF32, DataType::kF16, DataType::kBF16}) {
      groups.push_back({{.name = heads_per_group > 1 ? "decode_gqa" : "decode",
                         .dtype = dtype,
                         .q_heads = 8 * heads_per_group,
                         .kv_heads = 8,
                         .q_len = 1,
                         .kv_len = 32768,
                         .threads = threads}});
    }
  }
}

void AddBackward(std::vector<Group>& groups) {
  for (const bool causal : {false, true}) {
    for (const int64_t head_dim : {64, 96, 128}) {
      Case c = Square("backward", 8, 2048, head_dim);
      c.causal = causal;
      c.pass = Case::Pass::kBackward;
      groups.push_back({c});
    }
  }
}

void AddTwoThreads(std::vector<Group>& groups) {
  const auto add = [&](const Case& one) {
    Case two = one;
    two.threads = 2;
    groups.push_back({one, two});
  };
  for (const int64_t len : {1024, 4096, 16384}) {
    add(Square("two_threads", 1, len, 64));
  }
  add(Square("two_threads", 1, 4096, 128));
  add(With(Square("two_threads", 1, 4096, 128),
           [](Case& c) { c.causal = true; }));
}

// What a caller can force against what is chosen for it.
void AddForced(std::vector<Group>& groups) {
  const auto block_sizes = [&](const Case& automatic) {
    Group group = {automatic};
    for (const int64_t keys : {128, 256, 512}) {
      group.push_back(With(automatic, [&](Case& c) { c.block_size = keys; }));
    }
    groups.push_back(group);
  };
  for (const int64_t head_dim : {32, 64, 128, 256}) {
    block_sizes(Square("auto", 8, 128, head_dim));
    block_sizes(Square("auto", 2, 1024, head_dim));
    block_sizes(Square("auto", 1, 4096, head_dim));
    block_sizes(With(Square("auto", 1, 4096, head_dim),
                     [](Case& c) { c.causal = true; }));
    // A few rows over many keys, cut into splits.
    block_sizes(With(Square("auto", 8, 16384, head_dim),
                     [](Case& c) { c.q_len = 16; }));
  }
  for (const DataType dtype : {DataType::kF32, DataType::kBF16}) {
    for (const int64_t head_dim : {64, 128}) {
      const Case automatic = With(Square("auto_isa", 1, 2048, head_dim),
                                  [&](Case& c) { c.dtype = dtype; });
      Group group = {automatic};
      for (const Isa isa : SupportedIsas()) {
        if (isa == Isa::kScalar) continue;
        group.push_back(With(automatic, [&](Case& c) { c.isa = isa; }));
      }
      if (dtype == DataType::kBF16) {
        group.push_back(
            With(automatic, [](Case& c) { c.precision = Precision::kF32; }));
      }
      groups.push_back(group);
    }
  }
}

std::vector<Group> Groups() {
  std::vector<Group> groups;
  const bool two = AvailableThreads() >= 2;
  AddPrefill(1, groups);
  if (two) AddPrefill(2, groups);
  AddScaling(groups);
  AddMasked(groups);
  AddSixteenBit(groups);
  AddDecode(1, groups);
  if (two) AddDecode(2, groups);
  AddBackward(groups);
  if (two) AddTwoThreads(groups);
  AddForced(groups);
  return groups;
}

// One case in a group, and what its turns gave.
struct Contestant {
  Contestant(const Case& of, AttentionEngine& by)
      : c(of),
        engine(by),
        problem(ProblemOf(of)),
        tensors(of, problem),
        estimate((of.pass == Case::Pass::kBackward
                      ? by.estimator().EstimateBackward(problem)
                      : by.estimator().Estimate(problem))
                     .value()),
        flops(static_cast<double>(estimate.flops)) {
    if (c.pass == Case::Pass::kBackward) {
      engine.Run(problem, tensors.forward()).value();
    }
    first = RunOnce(c, engine, problem, tensors);
    // A turn is a burst that lasts long against the clock and the wake-up of a
    // worker.
    burst = std::clamp(static_cast<int>(0.02 / SecondsOf(first)), 1, 64);
  }

  static double SecondsOf(const RunStats& stats) {
    return duration<double>(stats.compute_time).count();
  }

  // Seconds of a call.
  double Turn() {
    double sum = 0;
    for (int i = 0; i < burst; ++i) {
      sum += SecondsOf(RunOnce(c, engine, problem, tensors));
    }
    return sum / burst;
  }

  double bytes() const {
    return static_cast<double>(estimate.input_bytes + estimate.output_bytes);
  }
  // Whether its products are of bf16, which multiply-adds do not bound.
  bool of_bf16() const { return IsaName(first.isa).ends_with("_bf16"); }
  // And only one of them a pair of numbers.
  bool native_dot() const {
    return of_bf16() && first.kernel.find("bf16x3") == std::string_view::npos;
  }

  const Case c;
  AttentionEngine& engine;
  const AttentionProblem problem;
  const Tensors tensors;
  const MemoryEstimate estimate;
  const double flops;
  RunStats first;
  int burst = 1;
  // One a round.
  std::vector<double> seconds, peaks, peak_ratios, streams, stream_ratios;
};

class Bench {
 public:
  explicit Bench(Flags flags) : flags_(std::move(flags)) {}

  // A record a case.
  std::vector<Json> Measure(const Group& group) {
    std::vector<std::unique_ptr<Contestant>> contestants;
    for (const Case& c : group) {
      contestants.push_back(std::make_unique<Contestant>(c, EngineOf(c)));
    }
    const double budget =
        flags_.seconds_per_case * static_cast<double>(group.size());
    double spent = 0;
    for (int round = 0;
         round < flags_.min_samples || (spent < budget && round < 101);
         ++round) {
      for (const auto& contestant : contestants) spent += Turn(*contestant);
    }
    std::vector<Json> records;
    for (const auto& contestant : contestants) {
      records.push_back(Record(*contestant));
      if (contestant != contestants.front()) {
        Compare(*contestants.front(), *contestant, records.front(),
                records.back());
      }
    }
    return records;
  }

 private:
  // Between two measurements of what bounds it; of the other limit, once.
  double Turn(Contestant& it) {
    const bool by_stream = it.c.ReadsMost();
    const auto measure = [&] {
      return by_stream ? stream_.Measure(it.engine.scheduler())
                       : Peak(it.engine);
    };
    const double before =
        last_engine_ == &it.engine && last_ > 0 && last_by_stream_ == by_stream
            ? last_
            : measure();
    const double time = it.Turn();
    last_ = measure();
    last_engine_ = &it.engine;
    last_by_stream_ = by_stream;
    const double limit = (before + last_) / 2;
    if (it.seconds.empty()) {
      (by_stream ? it.peaks : it.streams)
          .push_back(by_stream ? Peak(it.engine)
                               : stream_.Measure(it.engine.scheduler()));
      last_ = 0;
    }
    (by_stream ? it.streams : it.peaks).push_back(limit);
    it.seconds.push_back(time);
    it.peak_ratios.push_back(it.flops / time /
                             (by_stream ? it.peaks.front() : limit));
    it.stream_ratios.push_back(it.bytes() / time /
                               (by_stream ? limit : it.streams.front()));
    return time * it.burst;
  }

  static Json Record(const Contestant& it) {
    const double time = Median(it.seconds);
    const int64_t held = it.c.pass == Case::Pass::kNaive
                             ? it.estimate.naive_bytes
                             : it.estimate.flash_bytes;
    Json record = RecordOf(it.c);
    record.update({{"isa", IsaName(it.first.isa)},
                   {"kernel", it.first.kernel},
                   {"of_bf16", it.of_bf16()},
                   {"native_dot", it.native_dot()},
                   {"gflops", it.flops / time / 1e9},
                   {"peak_gflops", Median(it.peaks) / 1e9},
                   {"peak_ratio", Median(it.peak_ratios)},
                   {"gbytes_per_s", it.bytes() / time / 1e9},
                   {"stream_gbytes_per_s", Median(it.streams) / 1e9},
                   {"stream_ratio", Median(it.stream_ratios)},
                   {"time_ms", time * 1e3},
                   {"held_bytes", held},
                   {"samples", it.seconds.size()}});
    return record;
  }

  // `relative`: speed over that of the group's first case, in operations a
  // second; of another number of threads, in shares of peak.
  static void Compare(const Contestant& first, const Contestant& other,
                      Json& first_record, Json& record) {
    const bool by_share = first.c.threads != other.c.threads;
    std::vector<double> relative, inverse;
    for (size_t i = 0; i < first.seconds.size(); ++i) {
      relative.push_back(by_share ? other.peak_ratios[i] / first.peak_ratios[i]
                                  : other.flops / other.seconds[i] /
                                        (first.flops / first.seconds[i]));
      inverse.push_back(1 / relative.back());
    }
    record["relative"] = Median(relative);
    if (first.c.name == "masked") record["cost"] = Median(inverse);
    if (other.c.pass == Case::Pass::kNaive) {
      first_record["speedup"] = Median(inverse);
    }
  }

  AttentionEngine& EngineOf(const Case& c) {
    std::unique_ptr<AttentionEngine>& engine = engines_[{c.threads, c.isa}];
    if (!engine) {
      engine = MakePinnedEngine({.threads = c.threads, .force_isa = c.isa});
    }
    return *engine;
  }

  // Of the widest set, whatever a case is forced to.
  double Peak(AttentionEngine& engine) const {
    return MeasureFmaPeak(isa_, milliseconds(10), engine.scheduler(),
                          engine.threads());
  }

  const Flags flags_;
  const Isa isa_ = MachineInfo::Detect().isa;
  StreamBandwidth stream_;
  std::map<std::pair<int, std::optional<Isa>>, std::unique_ptr<AttentionEngine>>
      engines_;
  // The limit that was measured last, for whom, and which it was.
  double last_ = 0;
  const AttentionEngine* last_engine_ = nullptr;
  bool last_by_stream_ = false;
};

// Cycles a second: an add that waits for the one before takes one.
double MeasureClock() {
  constexpr int64_t kSteps = 10'000'000;
  uint64_t sum = 1;
  uint64_t addend = 3;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < kSteps; i += 10) {
#pragma GCC unroll 10
    for (int j = 0; j < 10; ++j) {
      sum += addend;
      asm volatile("" : "+r"(sum), "+r"(addend));  // NOLINT(hicpp-no-assembler)
    }
  }
  const auto time = std::chrono::steady_clock::now() - start;
  return static_cast<double>(kSteps) / duration<double>(time).count();
}

// Multiply-adds of the widest vectors that a core starts each cycle.
double FmasPerCycle() {
  const Isa isa = MachineInfo::Detect().isa;
  const double lanes = static_cast<double>(GeometryOf(isa).lanes);
  std::vector<double> ratios;
  for (int i = 0; i < 9; ++i) {
    const double peak = MeasureFmaPeak(isa, milliseconds(10));
    ratios.push_back(peak / (2 * lanes) / MeasureClock());
  }
  return Median(ratios);
}

std::string Wanted(const Group& group) {
  std::string names;
  for (const Case& c : group) {
    names += c.name + "/" + std::string(DataTypeName(c.dtype)) + "/" +
             std::to_string(c.head_dim) + "/" + std::to_string(c.q_len) + "/" +
             std::to_string(c.threads) + " ";
  }
  return names;
}

void PrintRow(const Json& r) {
  const auto text = [&](const char* key) {
    return r.value(key, std::string());
  };
  const auto number = [&](const char* key) { return r[key].get<double>(); };
  std::printf(
      "%-14s %-4s %3.0f:%-3.0f %5.0f %5.0f %4.0f %3.0f  %7.1f %6.3f "
      "%7.1f %6.3f",
      text("name").c_str(), text("dtype").c_str(), number("q_heads"),
      number("kv_heads"), number("q_len"), number("kv_len"), number("head_dim"),
      number("threads"), number("gflops"), number("peak_ratio"),
      number("gbytes_per_s"), number("stream_ratio"));
  if (r["causal"].get<bool>()) std::printf(" causal");
  if (number("window") > 0) std::printf(" window %.0f", number("window"));
  if (r.contains("block_size")) std::printf(" by %.0f", number("block_size"));
  if (r.contains("forced_isa")) std::printf(" %s", text("forced_isa").c_str());
  if (r.contains("precision")) std::printf(" as %s", text("precision").c_str());
  if (r.contains("relative")) std::printf("  x %.3f", number("relative"));
  if (r.contains("speedup")) std::printf("  %.1fx naive", number("speedup"));
  std::printf("\n");
  std::fflush(stdout);
}

// Whether two records are of the same case.
bool SameCase(const Json& a, const Json& b) {
  for (const char* key : {"name", "dtype", "q_heads", "kv_heads", "q_len",
                          "kv_len", "head_dim", "causal", "window", "threads",
                          "block_size", "precision", "forced_isa"}) {
    if (a.value(key, Json()) != b.value(key, Json())) return false;
  }
  return true;
}

// Records of `path` whose cases this run has not measured come first.
void Join(const std::string& path, Json& records) {
  std::ifstream file(path);
  if (!file) return;
  Json joined = Json::array();
  Json earlier = Json::parse(file);
  for (Json& old : earlier["records"]) {
    if (std::none_of(records.begin(), records.end(),
                     [&](const Json& r) { return SameCase(r, old); })) {
      joined.push_back(std::move(old));
    }
  }
  for (Json& r : records) joined.push_back(std::move(r));
  records = std::move(joined);
}

int Run(const Flags& flags) {
  std::vector<Group> groups = Groups();
  std::erase_if(groups, [&](const Group& group) {
    return Wanted(group).find(flags.filter) == std::string::npos;
  });
  Json out = {{"machine", MachineRecord()}, {"records", Json::array()}};
  out["machine"]["fmas_per_cycle"] = FmasPerCycle();
  std::printf("%s\n%7s %-14s %-4s %7s %5s %5s %4s %3s  %7s %6s %7s %6s\n",
              out["machine"].dump().c_str(), "", "name", "type", "heads", "q",
              "kv", "dim", "thr", "GFLOP/s", "share", "GB/s", "share");
  Bench bench(flags);
  bool broken = false;
  for (size_t i = 0; i < groups.size(); ++i) {
    for (Json& record : bench.Measure(groups[i])) {
      std::printf("%3zu/%-3zu ", i + 1, groups.size());
      PrintRow(record);
      broken |= !record["of_bf16"].get<bool>() &&
                record["peak_ratio"].get<double>() > 1.03;
      out["records"].push_back(std::move(record));
    }
  }
  if (flags.join) Join(flags.json_path, out["records"]);
  out["verdicts"] = JudgeCore(out);
  PrintCoreVerdicts(out["verdicts"]);
  if (!flags.json_path.empty() && !WriteJson(out, flags.json_path)) return 1;
  if (broken) {
    std::cerr << "core_bench: a case exceeds the FMA peak by over 3 %; the "
                 "peak was measured wrong\n";
    return 1;
  }
  return 0;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "Times the attention core against this machine's FMA peak and stream "
      "bandwidth,\nand prints what it is held to. A share of peak above 1.03 "
      "means a broken\nmeasurement and fails the run; a bar that is missed "
      "does not.");
  CLI::Option* json = app.add_option("--json", flags.json_path,
                                     "Write the records to this file");
  app.add_flag("--join", flags.join,
               "Keep the records of --json's file whose cases do not run now")
      ->needs(json);
  app.add_option("--filter", flags.filter,
                 "Only cases whose name/dtype/head_dim/q_len/threads contains "
                 "this, such as 'prefill/f32/128/4096/1'");
  app.add_option("--samples", flags.min_samples, "At least this many a case")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.seconds_per_case,
                 "Go on sampling a case for this long")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return Run(flags);
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
