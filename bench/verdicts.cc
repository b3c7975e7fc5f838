#include "bench/verdicts.h"

#include <cstdio>
#include <utility>

namespace attnd::bench {

void PrintVerdicts(const std::vector<Verdict>& verdicts) {
  if (verdicts.empty()) return;
  std::printf("\n%-76s %-5s %8s  limit\n", "", "", "measured");
  for (const Verdict& v : verdicts) {
    std::printf("%-76s %-5s %8.3f ", v.bar.c_str(), v.transport.c_str(),
                v.measured);
    if (v.at_least) std::printf(" >= %.2f", *v.at_least);
    if (v.at_most) std::printf(" <= %.2f", *v.at_most);
    std::printf("  %s%s\n", v.meets() ? "meets" : "misses",
                v.steady ? "" : ", unsteady");
  }
}

std::vector<Json> VerdictRecords(const std::vector<Verdict>& verdicts) {
  std::vector<Json> records;
  for (const Verdict& v : verdicts) {
    Json record = {{"bar", v.bar}};
    if (!v.transport.empty()) record["transport"] = v.transport;
    record["measured"] = v.measured;
    record["steady"] = v.steady;
    if (v.at_least) record["at_least"] = *v.at_least;
    if (v.at_most) record["at_most"] = *v.at_most;
    record["meets"] = v.meets();
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace attnd::bench
