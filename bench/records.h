// Functions that all benchmarks use: medians, and the files with the results.
#ifndef ATTND_BENCH_RECORDS_H_
#define ATTND_BENCH_RECORDS_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace attnd::bench {

using Json = nlohmann::ordered_json;

// Returns the value below which `fraction` (0 to 1) of `values` lie, by nearest
// rank. `values` must not be empty.
double Percentile(std::vector<double> values, double fraction);
double Median(std::vector<double> values);

// Returns the processor, instruction set, threads and caches, and the number of
// threads that were busy in the last minute. Call it before measuring.
Json MachineRecord();

// The results of one run.
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
