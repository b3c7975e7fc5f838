// What the benchmarks share: medians, and the files that keep what they
// measured.
#ifndef ATTND_BENCH_RECORDS_H_
#define ATTND_BENCH_RECORDS_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace attnd::bench {

using Json = nlohmann::ordered_json;

// The value below which `fraction` (0 to 1) of `values` lie, by nearest rank.
// `values` is not empty.
double Percentile(std::vector<double> values, double fraction);
double Median(std::vector<double> values);

// Processor, instruction set, threads, caches, and what else runs: the number
// of busy threads in the last minute. Call it before measuring.
Json MachineRecord();

// What one run measured.
struct Run {
  Json machine;  // MachineRecord(), and what else holds for the whole run
  std::vector<Json> records = {};
  std::vector<Json> verdicts = {};
};

// Writes `run` to `path` as JSON Lines. Each line is an object with one member,
// whose key says what the line is about: "machine", "record" or "verdict".
// bench/run_file.py reads it. Returns false, with a line on stderr, if `path`
// cannot be written.
bool WriteRun(const Run& run, const std::string& path);

// Returns the records in a file that WriteRun wrote, or none if there is no
// such file. Throws if a line is not JSON.
std::vector<Json> ReadRecords(const std::string& path);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_RECORDS_H_
