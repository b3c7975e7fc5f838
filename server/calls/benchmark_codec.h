// Checks a request of Benchmark, and converts it to what RunBenchmark needs.
#ifndef ATTND_SERVER_CALLS_BENCHMARK_CODEC_H_
#define ATTND_SERVER_CALLS_BENCHMARK_CODEC_H_

#include <chrono>
#include <cstdint>

#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_problem.h"
#include "server/calls/service_context.h"

namespace attnd::server {

// A valid benchmark. Fields that the request did not set have their defaults.
struct BenchmarkSpec {
  AttentionProblem problem;
  // The same problem in F32, because naive attention computes only in F32.
  AttentionProblem naive_problem;
  int64_t threads = 0;
  int64_t repetitions = 0;
  // How long one measurement of the machine's arithmetic speed takes at least.
  // Requests cannot change this; only tests do.
  std::chrono::nanoseconds peak_time = std::chrono::milliseconds(30);
};

// Converts `request`. An error names the field that is wrong.
// RESOURCE_EXHAUSTED if the request asks for more arithmetic than the server
// allows for one call.
absl::StatusOr<BenchmarkSpec> DecodeBenchmark(
    const v1::BenchmarkRequest& request, const ServiceContext& context);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_BENCHMARK_CODEC_H_
