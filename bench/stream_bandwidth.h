// Measures the other limit of the machine: how fast its threads can read memory
// that is in no cache.
#ifndef ATTND_BENCH_STREAM_BANDWIDTH_H_
#define ATTND_BENCH_STREAM_BANDWIDTH_H_

#include <cstdint>

#include "core/tile_scheduler.h"
#include "core/workspace.h"

namespace attnd::bench {

// Reads a large buffer many times. Not thread-safe.
class StreamBandwidth {
 public:
  static constexpr int64_t kBufferBytes = int64_t{512} << 20;

  // Reserves and fills the buffer. Aborts if there is not enough memory.
  StreamBandwidth();

  // Returns bytes per second. All workers of `scheduler` together read the
  // buffer once and add up its numbers.
  double Measure(TileScheduler& scheduler);

 private:
  Workspace buffer_;
};

}  // namespace attnd::bench

#endif  // ATTND_BENCH_STREAM_BANDWIDTH_H_
