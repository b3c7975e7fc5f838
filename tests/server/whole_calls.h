// Runs whole calls without gRPC, from the bytes of a request to the bytes of
// the answer, with the classes that the service uses. For tests and for the
// fuzzer.
#ifndef ATTND_TESTS_SERVER_WHOLE_CALLS_H_
#define ATTND_TESTS_SERVER_WHOLE_CALLS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/calls/attention_call.h"
#include "server/calls/service_context.h"

namespace attnd::server {

// Says how requests are cut into slices: each slice has 1 to `max_bytes` bytes,
// and `seed` determines the sizes.
struct Slicing {
  size_t max_bytes = 5000;
  uint64_t seed = 1;
};

// Has what a client would receive.
struct WholeAnswer {
  absl::Status status;
  std::vector<std::string> messages;
};

// Each function blocks until the call is over. Soon after that, the last thread
// that holds the call gives its memory and its slot back.
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
// Sends the messages of `requests` until the call reads no more of them, then
// ends the client's side.
WholeAnswer CallStream(const ServiceContext& context,
                       const std::vector<std::string>& requests,
                       const Slicing& slicing = {});

}  // namespace attnd::server

#endif  // ATTND_TESTS_SERVER_WHOLE_CALLS_H_
