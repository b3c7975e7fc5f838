// Measures the most f32 operations a second that a processor can reach: the
// rate of fused multiply-adds between registers, without loads and stores. The
// Benchmark call compares the kernels with it.
#ifndef ATTND_CORE_FMA_PEAK_H_
#define ATTND_CORE_FMA_PEAK_H_

#include <chrono>
#include <cstdint>

#include "core/isa.h"
#include "core/tile_scheduler.h"

namespace attnd {

// Returns how many f32 operations a second the vector instructions of `isa` do
// on the calling thread. A multiply-add counts as two operations. The
// measurement takes about `duration`.
double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration);

// Does the same on `threads` workers of `scheduler` at the same time, and
// returns the sum of their rates. A worker must not call this. If `stop` is not
// null and asks to stop, the call ends early and the result is not a
// measurement.
double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration,
                      TileScheduler& scheduler, int64_t threads,
                      const StopSignal* stop = nullptr);

}  // namespace attnd

#endif  // ATTND_CORE_FMA_PEAK_H_
