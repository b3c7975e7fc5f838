// Measures the memory of a server's process, after many calls and at the peak
// of one call.
#ifndef ATTND_BENCH_SERVING_MEMORY_H_
#define ATTND_BENCH_SERVING_MEMORY_H_

#include <string>
#include <vector>

#include "bench/child_process.h"
#include "bench/records.h"

namespace attnd::bench {

// `server` is an attnd that was just started. The calls use TCP. Returns two
// records. memory_peak is the peak of a call with 64 MiB per tensor, above the
// memory of the idle server, together with the result of MemoryEstimate.
// memory_flat is the resident memory after 100 and after 1,000 calls of mixed
// sizes up to the same size.
std::vector<Json> MeasureServerMemory(const ChildProcess& server);

// Returns memory_peak_shared: the peak of the same call in shared memory,
// without the pages of the region. `server` must be another new one.
Json MeasureSharedMemoryPeak(const ChildProcess& server,
                             const std::string& shm_socket);
// Returns memory_peak_stream: the peak of the same call as a stream. `server`
// must be another new one.
Json MeasureStreamPeak(const ChildProcess& server);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_SERVING_MEMORY_H_
