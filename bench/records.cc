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

bool WriteJson(const Json& json, const std::string& path) {
  std::ofstream file(path);
  file << json.dump(1) << "\n";
  if (file.flush()) return true;
  std::cerr << "cannot write " << path << "\n";
  return false;
}

}  // namespace attnd::bench
