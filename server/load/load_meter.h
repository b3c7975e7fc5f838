// Counts what the server's calls do, for GetServerInfoResponse.load. Does not
// use gRPC.
#ifndef ATTND_SERVER_LOAD_LOAD_METER_H_
#define ATTND_SERVER_LOAD_LOAD_METER_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>

#include "absl/status/status.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_engine.h"
#include "core/tile_scheduler.h"
#include "server/memory/admission.h"

namespace attnd::server {

// The methods of AttentionService, in its order.
enum class ServiceMethod {
  kAttention,
  kSelfAttention,
  kCrossAttention,
  kAttentionBackward,
  kAttentionStream,
  kBenchmark,
  kMemoryEstimate,
  kGetServerInfo
};

// Returns the name of the method in the contract, for example "Attention".
std::string_view MethodName(ServiceMethod method);

// The counters of one server. Thread-safe: calls count without locks.
class LoadMeter {
 public:
  // Says that the server serves from now on. `connections` returns how many
  // connections are open, out of `max_connections`. It must work as long as
  // anything calls Report. Call this before the first call can arrive.
  void BeginServing(int64_t max_connections,
                    std::function<int64_t()> connections);

  // Counts a call that ends with `status` after `total_time`. Call it before
  // the client can have the status, so that a client finds its own calls
  // counted. `stats` is what the answer says of its computation in
  // ExecutionStats. It counts only if the status is OK.
  void Ended(ServiceMethod method, const absl::Status& status,
             std::chrono::nanoseconds total_time, const RunStats& stats);

  // Returns the counters, and what the server does at this moment.
  v1::ServerLoad Report(const AttentionEngine& engine,
                        const Admission& admission) const;

 private:
  // Each has cache lines of its own, so that threads that count calls of
  // different methods do not slow each other down.
  struct alignas(64) Counters {
    std::atomic<int64_t> finished{0};
    std::atomic<int64_t> failed{0};
    std::atomic<int64_t> total_ns{0};
    std::atomic<int64_t> queue_ns{0};
    std::atomic<int64_t> compute_ns{0};
    std::atomic<int64_t> flops{0};
  };
  static constexpr size_t kMethods =
      static_cast<size_t>(ServiceMethod::kGetServerInfo) + 1;

  Counters& Of(ServiceMethod method) {
    return counters_[static_cast<size_t>(method)];
  }

  std::array<Counters, kMethods> counters_;
  SteadyTime began_ = std::chrono::steady_clock::now();
  int64_t max_connections_ = 0;
  std::function<int64_t()> connections_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_LOAD_LOAD_METER_H_
