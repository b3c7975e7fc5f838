// Writes what the server counts in the text format of Prometheus. Does not use
// gRPC.
#ifndef ATTND_SERVER_METRICS_METRICS_H_
#define ATTND_SERVER_METRICS_METRICS_H_

#include <functional>
#include <string>
#include <vector>

#include "server/calls/service_context.h"

namespace attnd::server {

// The Content-Type of what MetricsText returns.
inline constexpr char kMetricsType[] =
    "text/plain; version=0.0.4; charset=utf-8";

// A metric of a single number without labels, from a part of the server that is
// not in ServiceContext.
struct MetricNumber {
  std::string name;  // in base units; that of a counter ends with _total
  std::string help;
  bool is_counter = false;  // otherwise a gauge
  std::function<double()> read;
};

// Returns every metric of the server, and those in `more`. context.load must
// not be null. docs/metrics.md lists them, and a test compares the list with a
// server. The labels come from fixed sets, so whatever clients send, there are
// at most 300 time series. Thread-safe if the functions in `more` are.
std::string MetricsText(const ServiceContext& context,
                        const std::vector<MetricNumber>& more = {});

}  // namespace attnd::server

#endif  // ATTND_SERVER_METRICS_METRICS_H_
