// Measures the machine's own limit: the rate of fused multiply-adds between
// registers, with nothing loaded or stored.
#ifndef ATTND_CORE_FMA_PEAK_H_
#define ATTND_CORE_FMA_PEAK_H_

#include <chrono>
#include <cstdint>

#include "core/isa.h"
#include "core/tile_scheduler.h"

namespace attnd {

// Returns the f32 operations a second that the vectors of `isa` do on the
// calling thread, measured for about `duration`. A multiply-add is two
// operations.
double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration);

// Measures on `threads` workers of `scheduler` at the same time and returns the
// sum of their rates. A worker must not call this. If `stop` is not null and
// asks to stop, the call ends early and the result is not a measurement.
double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration,
                      TileScheduler& scheduler, int64_t threads,
                      const StopSignal* stop = nullptr);

}  // namespace attnd

#endif  // ATTND_CORE_FMA_PEAK_H_
