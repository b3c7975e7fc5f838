// Compares a measured number with its limits, for people and for records.
#ifndef ATTND_BENCH_VERDICTS_H_
#define ATTND_BENCH_VERDICTS_H_

#include <optional>
#include <string>
#include <vector>

#include "bench/records.h"

namespace attnd::bench {

struct Verdict {
  std::string bar;
  std::string transport = {};  // empty for a bar of the core
  double measured = 0;
  std::optional<double> at_least = {};
  std::optional<double> at_most = {};
  bool steady =
      true;  // whether the machine kept its speed during the measurement

  bool meets() const {
    return measured >= at_least.value_or(measured) &&
           measured <= at_most.value_or(measured);
  }
};

void PrintVerdicts(const std::vector<Verdict>& verdicts);
std::vector<Json> VerdictRecords(const std::vector<Verdict>& verdicts);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_VERDICTS_H_
