// The machine's own limit: how many fused multiply-adds its registers can do,
// with nothing loaded or stored.
#ifndef ATTND_CORE_FMA_PEAK_H_
#define ATTND_CORE_FMA_PEAK_H_

#include <chrono>
#include <cstdint>

#include "core/machine.h"
#include "core/tile_scheduler.h"

namespace attnd {

// f32 operations a second (a multiply-add counts two) of the vectors of `isa`,
// on the calling thread, measured for about `duration`.
double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration);

// The same on `threads` workers of `scheduler` at once. Not from a worker. If
// `stop` is not null and asks to stop, it ends early, and the result is not a
// measurement.
double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration,
                      TileScheduler& scheduler, int64_t threads,
                      const StopSignal* stop = nullptr);

}  // namespace attnd

#endif  // ATTND_CORE_FMA_PEAK_H_
