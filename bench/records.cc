#include "bench/records.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/machine.h"

namespace attnd::bench {

double Percentile(std::vector<double> values, double fraction) {
  const auto size = static_cast<int64_t>(values.size());
  const auto rank = static_cast<int64_t>(fraction * static_cast<double>(size));
  const auto nth = values.begin() + std::min(rank, size - 1);
  std::nth_element(values.begin(), nth, values.end());
  return *nth;
}

double Median(std::vector<double> values) {
  return Percentile(std::move(values), 0.5);
}

Json MachineRecord() {
  const MachineInfo machine = MachineInfo::Detect();
  std::string model = "unknown";
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name")) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  }
  double load = 0;
  getloadavg(&load, 1);
  return {
      {"cpu", model},
      {"isa", IsaName(machine.isa)},
      {"threads", AvailableThreads()},
      {"l1_bytes", sysconf(_SC_LEVEL1_DCACHE_SIZE)},
      {"l2_bytes", machine.l2_bytes},
      {"load_average", load},
      {"date", absl::FormatTime("%Y-%m-%d", absl::Now(), absl::UTCTimeZone())}};
}

bool WriteRun(const Run& run, const std::string& path) {
  std::ofstream file(path);
  const auto write = [&](const char* kind, const Json& value) {
    file << Json{{kind, value}}.dump() << "\n";
  };
  write("machine", run.machine);
  for (const Json& record : run.records) write("record", record);
  for (const Json& verdict : run.verdicts) write("verdict", verdict);
  if (file.flush()) return true;
  std::cerr << "cannot write " << path << "\n";
  return false;
}

std::vector<Json> ReadRecords(const std::string& path) {
  std::vector<Json> records;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    Json object = Json::parse(line);
    const auto record = object.find("record");
    if (record != object.end()) records.push_back(std::move(*record));
  }
  return records;
}

}  // namespace attnd::bench
