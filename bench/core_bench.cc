// Measures the core as a share of what the processor can do. Every case takes
// turns with the FMA peak or the stream bandwidth of the same threads, and with
// the cases that it is compared with. The results are medians of ratios,
// because absolute times change on shared machines, but ratios within one run
// do not.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/core_bars.h"
#include "bench/core_groups.h"
#include "bench/core_rounds.h"
#include "bench/records.h"
#include "bench/verdicts.h"

namespace attnd::bench {
namespace {

struct Flags {
  std::string json_path;
  bool join = false;
  std::string filter;
  std::optional<Isa> isa;
  Sampling sampling;
};

void PrintRow(const Json& r) {
  const auto text = [&](const char* key) {
    return r.value(key, std::string());
  };
  const auto number = [&](const char* key) { return r[key].get<double>(); };
  std::printf(
      "%-14s %-4s %3.0f:%-3.0f %5.0f %5.0f %4.0f %7.0f  %7.1f %6.3f "
      "%7.1f %6.3f",
      text("name").c_str(), text("dtype").c_str(), number("q_heads"),
      number("kv_heads"), number("q_len"), number("kv_len"), number("head_dim"),
      number("threads"), number("gflops"), number("peak_ratio"),
      number("gbytes_per_s"), number("stream_ratio"));
  if (r["causal"].get<bool>()) std::printf(" causal");
  if (number("window") > 0) std::printf(" window %.0f", number("window"));
  if (r.contains("block_size")) {
    std::printf(" block_size %.0f", number("block_size"));
  }
  if (r.contains("forced_isa")) std::printf(" %s", text("forced_isa").c_str());
  if (r.contains("precision")) {
    std::printf(" precision %s", text("precision").c_str());
  }
  if (r.contains("relative")) {
    std::printf("  relative %.3f", number("relative"));
  }
  if (r.contains("speedup")) std::printf("  %.1fx naive", number("speedup"));
  if (!r["steady"].get<bool>()) std::printf("  unsteady");
  std::printf("\n");
  std::fflush(stdout);
}

// A share of a limit above this number means that the limit was measured wrong.
constexpr double kMostShare = 1.03;

// Prints an error if a record exceeds a limit, and returns whether it does. The
// peak of the multiply-adds does not limit bf16 products. The stream bandwidth
// limits cases that mostly read, because these read from memory.
bool ExceedsLimit(const Json& record) {
  const auto exceeds = [&](const char* key) {
    return record[key].get<double>() > kMostShare;
  };
  const bool peak = !record["of_bf16"].get<bool>() && exceeds("peak_ratio");
  const bool stream =
      record["reads_most"].get<bool>() && exceeds("stream_ratio");
  for (const auto& [is, limit] :
       {std::pair(peak, "FMA peak"), std::pair(stream, "stream bandwidth")}) {
    if (!is) continue;
    std::cerr << "core_bench: " << record["name"].get<std::string>()
              << " exceeds the " << limit << " by over 3 %; the " << limit
              << " was measured wrong\n";
  }
  return peak || stream;
}

// Returns whether two records are from the same case.
bool SameCase(const Json& a, const Json& b) {
  for (const char* key : {"name", "dtype", "q_heads", "kv_heads", "q_len",
                          "kv_len", "head_dim", "causal", "window", "threads",
                          "block_size", "precision", "forced_isa"}) {
    if (a.value(key, Json()) != b.value(key, Json())) return false;
  }
  return true;
}

// Adds to `records` those of `path` whose cases this run has not measured, in
// the order of `path`.
void Join(const std::string& path, std::vector<Json>& records) {
  std::vector<Json> joined = ReadRecords(path);
  for (Json& record : records) {
    const auto old =
        std::find_if(joined.begin(), joined.end(),
                     [&](const Json& r) { return SameCase(r, record); });
    if (old == joined.end()) {
      joined.push_back(std::move(record));
    } else {
      *old = std::move(record);
    }
  }
  records = std::move(joined);
}

int RunBench(const Flags& flags) {
  std::vector<Group> groups = CoreGroups();
  std::erase_if(groups, [&](const Group& group) {
    return NamesOf(group).find(flags.filter) == std::string::npos;
  });
  for (Group& group : groups) {
    for (Case& c : group) {
      if (!c.isa) c.isa = flags.isa;
    }
  }
  Run run = {.machine = MachineRecord()};
  run.machine["fmas_per_cycle"] = FmasPerCycle();
  std::printf("%s\n%7s %-14s %-4s %7s %5s %5s %4s %7s  %7s %6s %7s %6s\n",
              run.machine.dump().c_str(), "", "name", "type", "heads", "q",
              "kv", "dim", "threads", "GFLOP/s", "share", "GB/s", "share");
  CoreRounds rounds(flags.sampling);
  bool broken = false;
  for (size_t i = 0; i < groups.size(); ++i) {
    for (Json& record : rounds.Measure(groups[i])) {
      std::printf("%3zu/%-3zu ", i + 1, groups.size());
      PrintRow(record);
      broken |= ExceedsLimit(record);
      run.records.push_back(std::move(record));
    }
  }
  run.machine["stream"] = rounds.StreamRecords();
  for (const Json& stream : run.machine["stream"]) {
    std::printf("stream bandwidth, threads = %d: %.1f GB/s, %s\n",
                stream["threads"].get<int>(),
                stream["gbytes_per_s"].get<double>(),
                stream["way"].get<std::string>().c_str());
  }
  if (flags.join) Join(flags.json_path, run.records);
  const std::vector<Verdict> verdicts = JudgeCore(run);
  PrintVerdicts(verdicts);
  run.verdicts = VerdictRecords(verdicts);
  if (!flags.json_path.empty() && !WriteRun(run, flags.json_path)) return 1;
  return broken ? 1 : 0;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "Measures the attention core as a share of this machine's FMA peak and "
      "stream\nbandwidth, and compares the results with bars. The program "
      "fails if a share\nof peak is above 1.03, because the peak was then "
      "measured wrong. It does not\nfail if a bar is missed.");
  CLI::Option* json =
      app.add_option("--json", flags.json_path,
                     "Write the records to this file, one per line");
  app.add_flag(
         "--join", flags.join,
         "Keep the records in the file of --json whose cases do not run now")
      ->needs(json);
  app.add_option(
      "--filter", flags.filter,
      "Run only cases whose name/dtype/head_dim/q_len/threads contains "
      "this text, such as 'prefill/f32/128/4096/1'");
  std::map<std::string, Isa> isas;
  for (const Isa isa : SupportedIsas()) isas.emplace(IsaName(isa), isa);
  app.add_option("--isa", flags.isa,
                 "Compute with this instruction set, as a server with --isa "
                 "does")
      ->transform(CLI::CheckedTransformer(isas));
  app.add_option("--samples", flags.sampling.min_rounds,
                 "Measure each case in at least this many rounds")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.sampling.seconds_per_case,
                 "Measure each case for this many seconds")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return RunBench(flags);
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
