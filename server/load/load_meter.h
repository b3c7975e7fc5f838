// Counts what the server's calls do, for GetServerInfoResponse.load and for the
// metrics (server/metrics/). Does not use gRPC.
#ifndef ATTND_SERVER_LOAD_LOAD_METER_H_
#define ATTND_SERVER_LOAD_LOAD_METER_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_engine.h"
#include "core/tile_scheduler.h"
#include "server/memory/admission.h"
#include "wire/reasons.h"

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

// Bytes that a call moved.
struct CallBytes {
  int64_t received = 0;  // of messages
  int64_t sent = 0;      // of messages
  // Of tensors in shared memory. They count only if the call succeeds.
  int64_t shared_read = 0;
  int64_t shared_written = 0;
};

// The upper bounds of the buckets of a LoadHistogram, from 50 us to 100 s.
inline constexpr std::chrono::microseconds kLoadBuckets[] = {
    std::chrono::microseconds(50),
    std::chrono::microseconds(100),
    std::chrono::microseconds(200),
    std::chrono::microseconds(500),
    std::chrono::microseconds(1'000),
    std::chrono::microseconds(2'000),
    std::chrono::microseconds(5'000),
    std::chrono::microseconds(10'000),
    std::chrono::microseconds(20'000),
    std::chrono::microseconds(50'000),
    std::chrono::microseconds(100'000),
    std::chrono::microseconds(200'000),
    std::chrono::microseconds(500'000),
    std::chrono::microseconds(1'000'000),
    std::chrono::microseconds(2'000'000),
    std::chrono::microseconds(5'000'000),
    std::chrono::microseconds(10'000'000),
    std::chrono::microseconds(20'000'000),
    std::chrono::microseconds(50'000'000),
    std::chrono::microseconds(100'000'000)};

// How many times lay in each bucket, and their sum. The last bucket has those
// above all bounds. A time that is equal to a bound lies below it.
struct LoadHistogram {
  std::array<int64_t, std::size(kLoadBuckets) + 1> counts{};
  std::chrono::nanoseconds sum{0};
};

// What the calls of a method did so far.
struct MethodCounts {
  // How many calls ended with each code, as a client gets it.
  std::array<int64_t, 17> by_code{};  // by absl::StatusCode
  // These four are of calls that succeeded.
  LoadHistogram call_time;
  LoadHistogram queue_time;
  std::chrono::nanoseconds compute_time{0};
  int64_t flops = 0;
  std::chrono::nanoseconds failed_time{0};  // of calls that failed
  CallBytes bytes;

  int64_t succeeded() const { return by_code[0]; }
  int64_t finished() const;
};

// The counters of one server. Thread-safe: calls count without locks.
class LoadMeter {
 public:
  static constexpr size_t kMethods =
      static_cast<size_t>(ServiceMethod::kGetServerInfo) + 1;

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
             std::chrono::nanoseconds total_time, const RunStats& stats,
             const CallBytes& bytes = {});

  MethodCounts Of(ServiceMethod method) const;
  // Returns how many calls failed for each of kServerReasons, and for others.
  std::vector<int64_t> failures_by_reason() const;
  int64_t connections() const { return connections_ ? connections_() : 0; }
  int64_t max_connections() const { return max_connections_; }
  // Returns when the server began to serve.
  std::chrono::system_clock::time_point began_at() const { return began_at_; }

  // Returns the counters, and what the server does at this moment.
  v1::ServerLoad Report(const AttentionEngine& engine,
                        const Admission& admission) const;

 private:
  // A sum of numbers that are not negative. A sum that would not fit stays
  // kMaxInt64.
  class Sum {
   public:
    void Add(int64_t number);
    int64_t value() const { return sum_.load(std::memory_order_relaxed); }

   private:
    std::atomic<int64_t> sum_{0};
  };
  struct Histogram {
    void Add(std::chrono::nanoseconds time);
    LoadHistogram Read() const;

    std::array<Sum, std::size(kLoadBuckets) + 1> counts;
    Sum sum_ns;
  };

  // Each has cache lines of its own, so that threads that count calls of
  // different methods do not slow each other down.
  struct alignas(64) Counters {
    Sum compute_ns;
    Sum flops;
    Sum failed_ns;
    Sum received_bytes;
    Sum sent_bytes;
    Sum shared_read_bytes;
    Sum shared_written_bytes;
    std::array<Sum, 17> by_code;  // by absl::StatusCode
    Histogram call_time;
    Histogram queue_time;
  };

  std::array<Counters, kMethods> counters_;
  std::array<Sum, std::size(kServerReasons) + 1> failures_;
  SteadyTime began_ = std::chrono::steady_clock::now();
  std::chrono::system_clock::time_point began_at_ =
      std::chrono::system_clock::now();
  int64_t max_connections_ = 0;
  std::function<int64_t()> connections_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_LOAD_LOAD_METER_H_
