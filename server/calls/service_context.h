// The parts and limits of the server that every call uses.
#ifndef ATTND_SERVER_CALLS_SERVICE_CONTEXT_H_
#define ATTND_SERVER_CALLS_SERVICE_CONTEXT_H_

#include <chrono>
#include <cstdint>

#include "core/attention_engine.h"
#include "cost/cost_limits.h"
#include "server/access/access_control.h"
#include "server/calls/decode_thread.h"
#include "server/load/load_meter.h"
#include "server/memory/admission.h"
#include "server/shared_memory/shared_region.h"
#include "server/tracing/span_exporter.h"

namespace attnd::server {

// The server's parts and limits as every call gets them. Owns nothing: the
// objects to which it refers must outlive it.
struct ServiceContext {
  AttentionEngine& engine;
  Admission& admission;
  int64_t max_message_bytes = 0;
  int64_t max_benchmark_vectors = 0;
  const RegionRegistry* regions = nullptr;  // null: shared memory is off
  std::chrono::nanoseconds stream_idle_timeout{0};  // 0: no limit
  std::chrono::nanoseconds max_benchmark_time{0};   // 0: no limit
  // Decodes messages that are not light (wire/message_splitter.h). If null, the
  // thread that receives a message decodes it.
  DecodeThread* decoder = nullptr;
  LoadMeter* load = nullptr;              // null: nothing is counted
  const AccessControl* access = nullptr;  // null: everybody may call
  SpanExporter* spans = nullptr;          // null: spans are not exported

  CostLimits limits() const {
    return {.max_message_bytes = max_message_bytes,
            .budget_bytes = admission.budget_bytes(),
            .max_in_flight = admission.max_in_flight()};
  }
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_SERVICE_CONTEXT_H_
