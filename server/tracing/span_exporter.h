// Sends the spans of calls to a collector of traces, by OTLP over HTTP. Only
// builds with OpenTelemetry can (otlp_spans.cc); no_spans.cc stands in for it
// in others. Does not use gRPC.
#ifndef ATTND_SERVER_TRACING_SPAN_EXPORTER_H_
#define ATTND_SERVER_TRACING_SPAN_EXPORTER_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "server/tracing/trace_context.h"

namespace attnd::server {

// A call that is over, as a span of its client's trace.
struct CallSpan {
  TraceContext context;        // of the call
  std::string parent_span_id;  // of the client
  std::string method;          // printable
  std::string request_id;
  int code = 0;  // of the status
  std::chrono::system_clock::time_point begin;
  std::chrono::nanoseconds time{0};
  std::chrono::nanoseconds queue_time{0};
  std::chrono::nanoseconds compute_time{0};
};

class SpanExporter {
 public:
  // Whether this build has OpenTelemetry. Without it, nothing else of this
  // class may be used.
  static bool IsBuiltIn();

  // Starts a thread that sends spans. OpenTelemetry's SDK reads from the
  // environment where to (OTEL_EXPORTER_OTLP_ENDPOINT) and as whose spans
  // (OTEL_SERVICE_NAME). Use at most one object at a time.
  SpanExporter();
  // Sends what waits. Takes three seconds at most.
  ~SpanExporter();
  SpanExporter(const SpanExporter&) = delete;
  SpanExporter& operator=(const SpanExporter&) = delete;

  // Adds the span to those that wait. Drops it if 2048 others wait. Never waits
  // for the collector. Thread-safe.
  void Export(const CallSpan& span);

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_TRACING_SPAN_EXPORTER_H_
