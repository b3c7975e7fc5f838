// The machine's other limit: how fast its threads can read memory that is in
// no cache.
#ifndef ATTND_BENCH_STREAM_BANDWIDTH_H_
#define ATTND_BENCH_STREAM_BANDWIDTH_H_

#include <cstdint>

#include "core/tile_scheduler.h"
#include "core/workspace.h"

namespace attnd::bench {

// Reads one large buffer again and again. Not thread-safe.
class StreamBandwidth {
 public:
  static constexpr int64_t kBufferBytes = int64_t{512} << 20;

  // Reserves and fills the buffer; aborts where there is no room for it.
  StreamBandwidth();

  // Bytes a second of one read-only sum over the buffer, split over all
  // workers of `scheduler`.
  double Measure(TileScheduler& scheduler);

 private:
  Workspace buffer_;
};

}  // namespace attnd::bench

#endif  // ATTND_BENCH_STREAM_BANDWIDTH_H_
