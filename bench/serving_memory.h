// What a server's process holds: after many calls, and at the peak of one.
#ifndef ATTND_BENCH_SERVING_MEMORY_H_
#define ATTND_BENCH_SERVING_MEMORY_H_

#include <string>
#include <vector>

#include "bench/child_process.h"
#include "bench/records.h"

namespace attnd::bench {

// Over TCP; `server` is attnd, fresh from its start. Two records:
// memory_peak: a call of 64 MiB a tensor, above the idle server, beside what
// MemoryEstimate says. memory_flat: resident after 100 and after 1,000 calls of
// mixed sizes up to that.
std::vector<Json> MeasureServerMemory(const ChildProcess& server);

// The same as memory_peak in shared memory, whose own pages do not count, on
// another fresh server: memory_peak_shared.
Json MeasureSharedMemoryPeak(const ChildProcess& server,
                             const std::string& shm_socket);
// The same peak of a stream, on a server that is as fresh: memory_peak_stream.
Json MeasureStreamPeak(const ChildProcess& server);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_SERVING_MEMORY_H_
