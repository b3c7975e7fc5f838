// Compares the records of a run with the bars for the core.
#ifndef ATTND_BENCH_CORE_BARS_H_
#define ATTND_BENCH_CORE_BARS_H_

#include <vector>

#include "bench/records.h"
#include "bench/verdicts.h"

namespace attnd::bench {

// Returns a verdict for each bar that the records of `run` have the numbers
// for. If several records fall under a bar, the worst one is judged.
std::vector<Verdict> JudgeCore(const Run& run);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CORE_BARS_H_
