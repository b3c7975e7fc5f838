// Compares the records of a run with the bars for serving.
#ifndef ATTND_BENCH_SERVING_BARS_H_
#define ATTND_BENCH_SERVING_BARS_H_

#include <vector>

#include "bench/records.h"
#include "bench/verdicts.h"

namespace attnd::bench {

// Returns a verdict for each bar that `records` have the numbers for.
std::vector<Verdict> JudgeServing(const std::vector<Json>& records);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_SERVING_BARS_H_
