// Measures flash attention and naive attention on random inputs, and the
// arithmetic speed of the machine for comparison. Verifies the result of flash
// attention. Starts no threads except those of an engine. Does not use gRPC.
#ifndef ATTND_SERVER_CALLS_BENCHMARK_H_
#define ATTND_SERVER_CALLS_BENCHMARK_H_

#include <functional>
#include <system_error>

#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_engine.h"
#include "core/tile_scheduler.h"
#include "server/calls/benchmark_codec.h"
#include "server/calls/service_context.h"
#include "server/memory/admission.h"

namespace attnd::server {

// Returns RESOURCE_EXHAUSTED, with RetryInfo, for a benchmark for which the
// system cannot start a thread. `error` is what std::thread has thrown.
absl::Status NoThreadError(const std::system_error& error);

// Receives a report when a phase begins.
using BenchmarkProgressFn = std::function<void(const v1::BenchmarkProgress&)>;

struct BenchmarkOutcome {
  v1::BenchmarkResult result;
  RunStats flash_stats;  // what result.stats says
};

// Runs the benchmark that `spec` describes and returns its result. Blocks until
// it is done, so do not call it from a worker.
//
// Each repetition runs naive attention, flash attention and sometimes the
// measurement of the machine, so that a disturbance affects all of them. The
// result has the medians.
//
// Memory: all that this allocates is reserved in `reservation` first. If the
// budget does not allow the memory of naive attention, the result has only
// flash attention. Afterwards `reservation` has what it had before, plus what
// an answer needs.
//
// Time: this checks `stop` every few milliseconds in every phase. All phases
// together take at most `context.max_benchmark_time`. When that time is up, the
// result covers the repetitions that have finished; if there are none, the
// error is RESOURCE_EXHAUSTED.
absl::StatusOr<BenchmarkOutcome> RunBenchmark(
    const BenchmarkSpec& spec, const ServiceContext& context,
    Admission::Reservation& reservation, const StopSignal& stop,
    const BenchmarkProgressFn& progress);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_BENCHMARK_H_
