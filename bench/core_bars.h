// The bars that the core is held to, judged by a run's records.
#ifndef ATTND_BENCH_CORE_BARS_H_
#define ATTND_BENCH_CORE_BARS_H_

#include "bench/records.h"

namespace attnd::bench {

// One object {bar, measured, steady, at_least or at_most, meets} for each bar
// that `run`, {machine, records}, has the numbers for. Where several records
// fall under a bar the worst is judged.
Json JudgeCore(const Json& run);

void PrintCoreVerdicts(const Json& verdicts);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CORE_BARS_H_
