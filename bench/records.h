// What the benchmarks share: medians, and the file that their records go to.
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

// False, with a line on stderr, where `path` cannot be written.
bool WriteJson(const Json& json, const std::string& path);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_RECORDS_H_
