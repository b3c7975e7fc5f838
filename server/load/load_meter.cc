#include "server/load/load_meter.h"

#include <iterator>
#include <limits>
#include <string>
#include <utility>

#include "google/protobuf/util/time_util.h"

namespace attnd::server {
namespace {

// The counters do not order each other, except that a call counts as failed
// only after it counts as finished.
constexpr auto kRelaxed = std::memory_order_relaxed;

constexpr std::string_view kNames[] = {
    "Attention",       "SelfAttention", "CrossAttention", "AttentionBackward",
    "AttentionStream", "Benchmark",     "MemoryEstimate", "GetServerInfo"};

// Returns a sum that only grows. A sum that no longer fits has become negative.
int64_t Sum(const std::atomic<int64_t>& counter) {
  const int64_t sum = counter.load(kRelaxed);
  return sum >= 0 ? sum : std::numeric_limits<int64_t>::max();
}

google::protobuf::Duration ToDuration(std::chrono::nanoseconds time) {
  return google::protobuf::util::TimeUtil::NanosecondsToDuration(time.count());
}

google::protobuf::Duration TimeOf(const std::atomic<int64_t>& counter_ns) {
  return ToDuration(std::chrono::nanoseconds(Sum(counter_ns)));
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
                      std::chrono::nanoseconds total_time) {
  Counters& counters = Of(method);
  counters.total_ns.fetch_add(total_time.count(), kRelaxed);
  counters.finished.fetch_add(1, kRelaxed);
  if (!status.ok()) counters.failed.fetch_add(1, std::memory_order_release);
}

void LoadMeter::Computed(ServiceMethod method, const RunStats& stats) {
  Counters& counters = Of(method);
  counters.queue_ns.fetch_add(stats.queue_time.count(), kRelaxed);
  counters.compute_ns.fetch_add(stats.compute_time.count(), kRelaxed);
  counters.flops.fetch_add(stats.flops, kRelaxed);
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
    method.set_flops(Sum(counters.flops));
  }
  return load;
}

}  // namespace attnd::server
