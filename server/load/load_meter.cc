#include "server/load/load_meter.h"

#include <iterator>
#include <string>
#include <utility>

#include "base/checked_math.h"
#include "google/protobuf/util/time_util.h"

namespace attnd::server {
namespace {

// The counters do not order each other, except that a call counts as failed
// only after it counts as finished. So a report can have the times of a call
// before the call itself counts, or after.
constexpr auto kRelaxed = std::memory_order_relaxed;

constexpr std::string_view kNames[] = {
    "Attention",       "SelfAttention", "CrossAttention", "AttentionBackward",
    "AttentionStream", "Benchmark",     "MemoryEstimate", "GetServerInfo"};

// Adds a number that is not negative. A sum that would not fit stays kMaxInt64.
// At 10 TFLOP/s, that happens to a sum of operations within two weeks.
void Add(std::atomic<int64_t>& sum, int64_t number) {
  int64_t before = sum.load(kRelaxed);
  while (!sum.compare_exchange_weak(before, SaturatingSum({before, number}),
                                    kRelaxed)) {
  }
}

google::protobuf::Duration ToDuration(std::chrono::nanoseconds time) {
  return google::protobuf::util::TimeUtil::NanosecondsToDuration(time.count());
}

google::protobuf::Duration TimeOf(const std::atomic<int64_t>& counter_ns) {
  return ToDuration(std::chrono::nanoseconds(counter_ns.load(kRelaxed)));
}

}  // namespace

std::string_view MethodName(ServiceMethod method) {
  return kNames[static_cast<size_t>(method)];
}

void LoadMeter::BeginServing(int64_t max_connections,
                             std::function<int64_t()> connections) {
  began_ = std::chrono::steady_clock::now();
  max_connections_ = max_connections;
  connections_ = std::move(connections);
}

void LoadMeter::Ended(ServiceMethod method, const absl::Status& status,
                      std::chrono::nanoseconds total_time,
                      const RunStats& stats) {
  Counters& counters = Of(method);
  Add(counters.total_ns, total_time.count());
  if (status.ok()) {
    Add(counters.queue_ns, stats.queue_time.count());
    Add(counters.compute_ns, stats.compute_time.count());
    Add(counters.flops, stats.flops);
  }
  counters.finished.fetch_add(1, kRelaxed);
  if (!status.ok()) counters.failed.fetch_add(1, std::memory_order_release);
}

v1::ServerLoad LoadMeter::Report(const AttentionEngine& engine,
                                 const Admission& admission) const {
  static_assert(std::size(kNames) == kMethods);
  v1::ServerLoad load;
  *load.mutable_uptime() =
      ToDuration(std::chrono::steady_clock::now() - began_);
  const Admission::Usage usage = admission.usage();
  load.set_in_flight(usage.in_flight);
  load.set_max_in_flight(admission.max_in_flight());
  load.set_reserved_bytes(usage.bytes);
  if (connections_) load.set_connections(connections_());
  load.set_max_connections(max_connections_);
  load.set_busy_threads(engine.busy_threads());
  for (size_t i = 0; i < kMethods; ++i) {
    const Counters& counters = counters_[i];
    v1::MethodLoad& method = *load.add_methods();
    method.set_method(std::string(kNames[i]));
    // This is read first, so that it never exceeds `finished`.
    method.set_failed(counters.failed.load(std::memory_order_acquire));
    method.set_finished(counters.finished.load(kRelaxed));
    *method.mutable_total_time() = TimeOf(counters.total_ns);
    *method.mutable_queue_time() = TimeOf(counters.queue_ns);
    *method.mutable_compute_time() = TimeOf(counters.compute_ns);
    method.set_flops(counters.flops.load(kRelaxed));
  }
  return load;
}

}  // namespace attnd::server
