// What a Benchmark request asks for, checked. Measures nothing.
#ifndef ATTND_SERVER_CALLS_BENCHMARK_CODEC_H_
#define ATTND_SERVER_CALLS_BENCHMARK_CODEC_H_

#include <chrono>
#include <cstdint>

#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_problem.h"
#include "server/calls/service_context.h"

namespace attnd::server {

// A request that was found good, with every default resolved.
struct BenchmarkSpec {
  AttentionProblem problem;
  AttentionProblem naive_problem;  // the same of F32, which naive computes in
  int64_t threads = 0;
  int64_t repetitions = 0;
  // How long one measurement of the machine's own limit takes. Requests cannot
  // change it; tests with many small problems do.
  std::chrono::nanoseconds peak_time = std::chrono::milliseconds(30);
};

// Refuses with the field's path; RESOURCE_EXHAUSTED where one request asks for
// more arithmetic than the server grants.
absl::StatusOr<BenchmarkSpec> DecodeBenchmark(
    const v1::BenchmarkRequest& request, const ServiceContext& context);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_BENCHMARK_CODEC_H_
