// Whole calls without gRPC: the bytes of a request in, the bytes of the answer
// out, by the same classes that the service uses. For tests and for the fuzzer.
#ifndef ATTND_TESTS_SERVER_WHOLE_CALLS_H_
#define ATTND_TESTS_SERVER_WHOLE_CALLS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/attention_call.h"
#include "server/service_context.h"

namespace attnd::server {

// How requests are cut into slices: of 1 to `max_bytes`, which `seed` decides.
struct Slicing {
  size_t max_bytes = 5000;
  uint64_t seed = 1;
};

// What a client gets.
struct WholeAnswer {
  absl::Status status;
  std::vector<std::string> messages;
};

// Each blocks until the call is over. Its memory and its slot are given back
// soon after, by the thread that was the last to hold it.
WholeAnswer CallUnary(const ServiceContext& context, AttentionMethod method,
                      const std::string& request, const Slicing& slicing = {});
WholeAnswer CallMemoryEstimate(const ServiceContext& context,
                               const std::string& request,
                               const Slicing& slicing = {});
WholeAnswer CallServerInfo(const ServiceContext& context,
                           const std::string& request,
                           const Slicing& slicing = {});
WholeAnswer CallBenchmark(const ServiceContext& context,
                          const std::string& request,
                          const Slicing& slicing = {});
// Sends as many of `requests` as are read, then ends its side.
WholeAnswer CallStream(const ServiceContext& context,
                       const std::vector<std::string>& requests,
                       const Slicing& slicing = {});

}  // namespace attnd::server

#endif  // ATTND_TESTS_SERVER_WHOLE_CALLS_H_
