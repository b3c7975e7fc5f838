// The bars that the core is held to, judged by a run's records.
#ifndef ATTND_BENCH_CORE_BARS_H_
#define ATTND_BENCH_CORE_BARS_H_

#include <vector>

#include "bench/records.h"
#include "bench/verdicts.h"

namespace attnd::bench {

// One for each bar that `run`, {machine, records}, has the numbers for. Where
// several records fall under a bar the worst is judged.
std::vector<Verdict> JudgeCore(const Json& run);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CORE_BARS_H_
