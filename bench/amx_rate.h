// Whether the tile unit of Intel's AMX runs at its pace. It belongs to a whole
// core: while a neighbour on the other hyperthread works, it falls to a third,
// and multiply-adds keep their speed. So a peak of multiply-adds cannot tell.
#ifndef ATTND_BENCH_AMX_RATE_H_
#define ATTND_BENCH_AMX_RATE_H_

#include "core/tile_scheduler.h"

namespace attnd::bench {

// bf16 operations a second of the slowest worker of `scheduler`, all of which
// multiply at once what lies in their first-level caches, for some
// milliseconds; 0 without AMX. Not from a worker.
double MeasureAmxRate(TileScheduler& scheduler);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_AMX_RATE_H_
