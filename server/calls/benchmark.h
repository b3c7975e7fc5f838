// Flash against naive attention on random inputs, beside the machine's own
// limit. Measures, verifies and reports; knows no gRPC and no threads of its
// own but the engine's.
#ifndef ATTND_SERVER_CALLS_BENCHMARK_H_
#define ATTND_SERVER_CALLS_BENCHMARK_H_

#include <functional>
#include <system_error>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "core/tile_scheduler.h"
#include "server/calls/benchmark_codec.h"
#include "server/calls/service_context.h"
#include "server/memory/admission.h"

namespace attnd::server {

// What either of a benchmark's threads is refused with where the system starts
// none: `error` is why.
absl::Status NoThreadError(const std::system_error& error);

// Called with the phase that begins and how much of the whole is done.
using BenchmarkProgressFn =
    std::function<void(absl::string_view phase, double fraction)>;

// Runs naive, flash and the FMA peak in turns, so that what disturbs one
// disturbs all, and takes medians. Holds what it allocates in `reservation`,
// which is left with no more than an answer needs; leaves naive out where that
// does not grow so far. Checks `stop` in every phase, every few milliseconds.
// All phases together take at most `context.max_benchmark_time`. When that is
// over, the result covers the repetitions that ended; if none ended, it is
// RESOURCE_EXHAUSTED. Blocks; do not call it from a worker.
absl::StatusOr<v1::BenchmarkResult> RunBenchmark(
    const BenchmarkSpec& spec, const ServiceContext& context,
    Admission::Reservation& reservation, const StopSignal& stop,
    const BenchmarkProgressFn& progress);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_BENCHMARK_H_
