// Measures whether the tile unit of Intel's AMX runs at its full speed. Both
// hyperthreads of a core share this unit. While the other hyperthread works,
// the unit slows down to a third, but multiply-adds keep their speed. So the
// peak of multiply-adds does not show the slowdown.
#ifndef ATTND_BENCH_AMX_RATE_H_
#define ATTND_BENCH_AMX_RATE_H_

#include "core/tile_scheduler.h"

namespace attnd::bench {

// Returns the bf16 operations per second of the slowest worker of `scheduler`,
// or 0 without AMX. All workers multiply data in their first-level caches at
// the same time for some milliseconds. Must not be called from a worker.
double MeasureAmxRate(TileScheduler& scheduler);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_AMX_RATE_H_
