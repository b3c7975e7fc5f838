#include "server/load/load_meter.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <string>
#include <utility>

#include "base/checked_math.h"
#include "google/protobuf/util/time_util.h"
#include "server/status/status_convert.h"

namespace attnd::server {
namespace {

using std::chrono::nanoseconds;

constexpr std::string_view kNames[] = {
    "Attention",       "SelfAttention", "CrossAttention", "AttentionBackward",
    "AttentionStream", "Benchmark",     "MemoryEstimate", "GetServerInfo"};

google::protobuf::Duration ToDuration(nanoseconds time) {
  return google::protobuf::util::TimeUtil::NanosecondsToDuration(time.count());
}

size_t IndexOf(std::string_view reason) {
  return static_cast<size_t>(
      std::find(std::begin(kServerReasons), std::end(kServerReasons), reason) -
      std::begin(kServerReasons));
}

}  // namespace

std::string_view MethodName(ServiceMethod method) {
  return kNames[static_cast<size_t>(method)];
}

int64_t MethodCounts::finished() const {
  return std::accumulate(by_code.begin(), by_code.end(), int64_t{0});
}

// At 10 TFLOP/s, a sum of operations does not fit after two weeks. The sums do
// not order each other, so a report can have the times of a call before the
// call itself counts, or after.
void LoadMeter::Sum::Add(int64_t number) {
  int64_t before = sum_.load(std::memory_order_relaxed);
  while (!sum_.compare_exchange_weak(before, SaturatingSum({before, number}),
                                     std::memory_order_relaxed)) {
  }
}

void LoadMeter::Histogram::Add(nanoseconds time) {
  const auto* const bucket =
      std::lower_bound(std::begin(kLoadBuckets), std::end(kLoadBuckets), time);
  counts[static_cast<size_t>(bucket - std::begin(kLoadBuckets))].Add(1);
  sum_ns.Add(time.count());
}

LoadHistogram LoadMeter::Histogram::Read() const {
  LoadHistogram histogram;
  for (size_t i = 0; i < counts.size(); ++i) {
    histogram.counts[i] = counts[i].value();
  }
  histogram.sum = nanoseconds(sum_ns.value());
  return histogram;
}

void LoadMeter::BeginServing(int64_t max_connections,
                             std::function<int64_t()> connections) {
  began_ = std::chrono::steady_clock::now();
  began_at_ = std::chrono::system_clock::now();
  max_connections_ = max_connections;
  connections_ = std::move(connections);
}

void LoadMeter::Ended(ServiceMethod method, const absl::Status& status,
                      nanoseconds total_time, const RunStats& stats,
                      const CallBytes& bytes) {
  Counters& counters = counters_[static_cast<size_t>(method)];
  counters.received_bytes.Add(bytes.received);
  counters.sent_bytes.Add(bytes.sent);
  if (status.ok()) {
    counters.call_time.Add(total_time);
    counters.queue_time.Add(stats.queue_time);
    counters.compute_ns.Add(stats.compute_time.count());
    counters.flops.Add(stats.flops);
    counters.shared_read_bytes.Add(bytes.shared_read);
    counters.shared_written_bytes.Add(bytes.shared_written);
  } else {
    counters.failed_ns.Add(total_time.count());
    failures_[IndexOf(WireReason(status))].Add(1);
  }
  counters.by_code[static_cast<size_t>(WireCode(status.code()))].Add(1);
}

MethodCounts LoadMeter::Of(ServiceMethod method) const {
  const Counters& counters = counters_[static_cast<size_t>(method)];
  MethodCounts counts{
      .call_time = counters.call_time.Read(),
      .queue_time = counters.queue_time.Read(),
      .compute_time = nanoseconds(counters.compute_ns.value()),
      .flops = counters.flops.value(),
      .failed_time = nanoseconds(counters.failed_ns.value()),
      .bytes = {.received = counters.received_bytes.value(),
                .sent = counters.sent_bytes.value(),
                .shared_read = counters.shared_read_bytes.value(),
                .shared_written = counters.shared_written_bytes.value()}};
  for (size_t code = 0; code < counts.by_code.size(); ++code) {
    counts.by_code[code] = counters.by_code[code].value();
  }
  return counts;
}

std::vector<int64_t> LoadMeter::failures_by_reason() const {
  std::vector<int64_t> failures;
  failures.reserve(std::size(failures_));
  for (const Sum& sum : failures_) failures.push_back(sum.value());
  return failures;
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
  load.set_connections(connections());
  load.set_max_connections(max_connections_);
  load.set_busy_threads(engine.busy_threads());
  for (size_t i = 0; i < kMethods; ++i) {
    const MethodCounts counts = Of(static_cast<ServiceMethod>(i));
    v1::MethodLoad& method = *load.add_methods();
    method.set_method(std::string(kNames[i]));
    method.set_finished(counts.finished());
    method.set_failed(counts.finished() - counts.succeeded());
    *method.mutable_total_time() = ToDuration(nanoseconds(SaturatingSum(
        {counts.call_time.sum.count(), counts.failed_time.count()})));
    *method.mutable_queue_time() = ToDuration(counts.queue_time.sum);
    *method.mutable_compute_time() = ToDuration(counts.compute_time);
    method.set_flops(counts.flops);
  }
  return load;
}

}  // namespace attnd::server
