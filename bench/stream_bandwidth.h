// Measures the other limit of the machine: how fast its threads can read memory
// that is in no cache.
#ifndef ATTND_BENCH_STREAM_BANDWIDTH_H_
#define ATTND_BENCH_STREAM_BANDWIDTH_H_

#include <cstdint>
#include <map>
#include <string>

#include "bench/records.h"
#include "core/tile_scheduler.h"
#include "core/workspace.h"

namespace attnd::bench {

// A way to read a large buffer. Which way is fastest depends on the processor
// and on how many of its cores read.
struct ReadingWay {
  int streams = 1;          // places that a thread reads in turn
  int64_t ahead_bytes = 0;  // how far ahead it prefetches; 0 = not at all
  bool huge_pages = true;   // whether the buffer asks the system for them

  std::string Text()
      const;  // "2 streams, prefetch 512 bytes ahead, huge pages"
};

// Reads large buffers many times. Not thread-safe.
class StreamBandwidth {
 public:
  // Reserves and fills a buffer of huge pages and one of small pages, 1 GiB in
  // all. Aborts if there is not enough memory.
  StreamBandwidth();

  // Returns bytes per second. All workers of `scheduler` together read a buffer
  // once, in the fastest way for this number of workers, and add up its
  // numbers. The first call with a number of workers tries all ways, which
  // takes seconds.
  double Measure(TileScheduler& scheduler);

  // Returns one object for each number of workers that was measured: the
  // fastest way, and the best rate of the calls of Measure.
  Json Records() const;

 private:
  struct Best {
    ReadingWay way;
    double bytes_per_s = 0;
  };

  ReadingWay FindFastest(TileScheduler& scheduler) const;
  const Workspace& BufferOf(const ReadingWay& way) const {
    return way.huge_pages ? huge_ : small_;
  }

  Workspace huge_, small_;
  std::map<int, Best> best_;  // by the number of workers
};

}  // namespace attnd::bench

#endif  // ATTND_BENCH_STREAM_BANDWIDTH_H_
