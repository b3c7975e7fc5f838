#include "server/metrics/metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "prometheus/client_metric.h"
#include "prometheus/metric_family.h"
#include "prometheus/metric_type.h"
#include "prometheus/text_serializer.h"
#include "server/load/load_meter.h"
#include "server/version.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

double Seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

ClientMetric Labelled(std::vector<ClientMetric::Label> labels) {
  ClientMetric metric;
  metric.label = std::move(labels);
  return metric;
}

void AddCount(MetricFamily& family, std::vector<ClientMetric::Label> labels,
              int64_t count) {
  ClientMetric metric = Labelled(std::move(labels));
  metric.counter.value = static_cast<double>(count);
  family.metric.push_back(std::move(metric));
}

MetricFamily Number(const std::string& name, const std::string& help,
                    bool is_counter, double value) {
  MetricFamily family{name, help, MetricType::Gauge, {ClientMetric()}};
  if (is_counter) {
    family.type = MetricType::Counter;
    family.metric[0].counter.value = value;
  } else {
    family.metric[0].gauge.value = value;
  }
  return family;
}

void AddTimes(MetricFamily& family, std::vector<ClientMetric::Label> labels,
              const LoadHistogram& times) {
  ClientMetric metric = Labelled(std::move(labels));
  // The total comes from the buckets, so that it agrees with them while calls
  // end at the same time.
  uint64_t total = 0;
  for (size_t i = 0; i < times.counts.size(); ++i) {
    total += static_cast<uint64_t>(times.counts[i]);
    if (i < std::size(kLoadBuckets)) {
      metric.histogram.bucket.push_back({total, Seconds(kLoadBuckets[i])});
    }
  }
  metric.histogram.sample_count = total;
  metric.histogram.sample_sum = Seconds(times.sum);
  family.metric.push_back(std::move(metric));
}

int64_t ResidentBytes() {
  int64_t total = 0;
  int64_t resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

double ProcessorSeconds() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) +
           static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// Whether the method computes attention for its caller. The times and buckets
// of the others would be of little use, and would exceed the bound of series.
bool ComputesAttention(ServiceMethod method) {
  return method <= ServiceMethod::kAttentionStream;
}

void Add(LoadHistogram& sum, const LoadHistogram& times) {
  for (size_t i = 0; i < times.counts.size(); ++i) {
    sum.counts[i] += times.counts[i];
  }
  sum.sum += times.sum;
}

void AddCalls(const LoadMeter& load, std::vector<MetricFamily>& families) {
  MetricFamily calls{"attnd_calls_total",
                     "Calls that ended, by the code that the client got.",
                     MetricType::Counter,
                     {}};
  MetricFamily call_times{
      "attnd_call_seconds",
      "How long calls took that succeeded, from their message to their answer.",
      MetricType::Histogram,
      {}};
  LoadHistogram queue;
  std::chrono::nanoseconds compute{0};
  uint64_t computed = 0;
  int64_t flops = 0;
  CallBytes in_messages;
  CallBytes in_streams;
  for (size_t i = 0; i < LoadMeter::kMethods; ++i) {
    const auto method = static_cast<ServiceMethod>(i);
    const MethodCounts counts = load.Of(method);
    const std::string name(MethodName(method));
    for (size_t code = 0; code < counts.by_code.size(); ++code) {
      // The other codes appear when a call ends with them.
      if (code != 0 && counts.by_code[code] == 0) continue;
      AddCount(calls,
               {{"method", name},
                {"code", absl::StatusCodeToString(
                             static_cast<absl::StatusCode>(code))}},
               counts.by_code[code]);
    }
    flops += counts.flops;
    CallBytes& bytes =
        method == ServiceMethod::kAttentionStream ? in_streams : in_messages;
    bytes.received += counts.bytes.received;
    bytes.sent += counts.bytes.sent;
    in_messages.shared_read += counts.bytes.shared_read;
    in_messages.shared_written += counts.bytes.shared_written;
    if (!ComputesAttention(method)) continue;
    AddTimes(call_times, {{"method", name}}, counts.call_time);
    Add(queue, counts.queue_time);
    compute += counts.compute_time;
    computed += static_cast<uint64_t>(counts.succeeded());
  }
  families.push_back(std::move(calls));
  families.push_back(std::move(call_times));

  MetricFamily& queue_times = families.emplace_back(
      MetricFamily{"attnd_queue_seconds",
                   "How long calls waited for worker threads that other calls "
                   "had. Only calls that succeeded.",
                   MetricType::Histogram,
                   {}});
  AddTimes(queue_times, {}, queue);
  MetricFamily compute_times{
      "attnd_compute_seconds",
      "How long calls were computed. Only calls that succeeded.",
      MetricType::Summary,
      {ClientMetric()}};
  compute_times.metric[0].summary.sample_count = computed;
  compute_times.metric[0].summary.sample_sum = Seconds(compute);
  families.push_back(std::move(compute_times));
  families.push_back(
      Number("attnd_floating_point_operations_total",
             "Floating-point operations of calls that succeeded.",
             /*is_counter=*/true, static_cast<double>(flops)));

  MetricFamily failures{"attnd_failed_calls_total",
                        "Calls that did not succeed, by the reason of their "
                        "error.",
                        MetricType::Counter,
                        {}};
  const std::vector<int64_t> by_reason = load.failures_by_reason();
  for (size_t i = 0; i < by_reason.size(); ++i) {
    const std::string_view reason =
        i < std::size(kServerReasons) ? kServerReasons[i] : "OTHER";
    AddCount(failures, {{"reason", std::string(reason)}}, by_reason[i]);
  }
  families.push_back(std::move(failures));

  MetricFamily received{
      "attnd_received_bytes_total",
      "Bytes of messages from clients, and of the tensors that attnd read in "
      "shared memory.",
      MetricType::Counter,
      {}};
  MetricFamily sent{
      "attnd_sent_bytes_total",
      "Bytes of messages to clients, and of the tensors that attnd wrote to "
      "shared memory.",
      MetricType::Counter,
      {}};
  const auto add_bytes = [&](const char* transport, int64_t in, int64_t out) {
    AddCount(received, {{"transport", transport}}, in);
    AddCount(sent, {{"transport", transport}}, out);
  };
  add_bytes("inline", in_messages.received, in_messages.sent);
  add_bytes("stream", in_streams.received, in_streams.sent);
  add_bytes("shared_memory", in_messages.shared_read,
            in_messages.shared_written);
  families.push_back(std::move(received));
  families.push_back(std::move(sent));
}

}  // namespace

std::string MetricsText(const ServiceContext& context,
                        const std::vector<MetricNumber>& more) {
  const LoadMeter& load = *context.load;
  std::vector<MetricFamily> families;
  AddCalls(load, families);

  const auto gauge = [&](const char* name, const char* help, auto value) {
    families.push_back(
        Number(name, help, /*is_counter=*/false, static_cast<double>(value)));
  };
  const Admission::Usage usage = context.admission.usage();
  gauge("attnd_reserved_bytes", "Bytes of the memory budget that calls hold.",
        usage.bytes);
  gauge("attnd_memory_budget_bytes", "Bytes that all calls together may hold.",
        context.admission.budget_bytes());
  gauge("attnd_slots",
        "Slots that calls hold; up to twice attnd_max_slots while several "
        "clients call.",
        usage.in_flight);
  gauge("attnd_max_slots", "Slots that there are (--max-in-flight).",
        context.admission.max_in_flight());
  gauge("attnd_connections", "Open connections of clients.",
        load.connections());
  gauge("attnd_max_connections",
        "How many connections may be open (--max-connections).",
        load.max_connections());
  gauge("attnd_busy_workers", "Worker threads that compute at this moment.",
        context.engine.busy_threads());
  gauge("attnd_workers", "Worker threads that there are (--threads).",
        context.engine.threads());
  gauge("process_resident_memory_bytes", "Resident memory of the process.",
        ResidentBytes());
  gauge("process_start_time_seconds",
        "When the server began to serve, in seconds since 1970.",
        Seconds(load.began_at().time_since_epoch()));
  families.push_back(Number("process_cpu_seconds_total",
                            "Processor time that the process used.",
                            /*is_counter=*/true, ProcessorSeconds()));
  MetricFamily& build = families.emplace_back(
      Number("attnd_build_info", "1. The labels say what runs.",
             /*is_counter=*/false, 1));
  build.metric[0].label = {
      {"version", kVersion},
      {"isa", std::string(IsaName(context.engine.machine().isa))}};
  for (const MetricNumber& number : more) {
    families.push_back(
        Number(number.name, number.help, number.is_counter, number.read()));
  }

  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return std::move(text).str();
}

}  // namespace attnd::server
