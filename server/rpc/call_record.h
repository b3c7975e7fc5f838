// Follows one call of a client from its beginning to its end, for the server's
// counters, its log and traces.
#ifndef ATTND_SERVER_RPC_CALL_RECORD_H_
#define ATTND_SERVER_RPC_CALL_RECORD_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "core/attention_engine.h"
#include "grpcpp/server_context.h"
#include "server/access/access_control.h"
#include "server/calls/service_context.h"
#include "server/load/load_meter.h"
#include "server/tracing/span_exporter.h"
#include "server/tracing/trace_context.h"

namespace attnd::server {

// Counts a call, and writes a line for it to the log, at the level debug. The
// line never has the contents of tensors or the metadata that the client sent,
// except the ids of a valid traceparent. Cancelled, Received and Sent are
// thread-safe, because a stream reads and writes at the same time.
class CallRecord {
 public:
  // The call begins now. `rpc` and what `context` refers to must outlive the
  // record.
  CallRecord(ServiceMethod method, grpc::CallbackServerContext& rpc,
             const ServiceContext& context);
  // A call of a method that the server does not have. `path` is what the client
  // sent. It, `access` and `spans` must outlive the record, and the last two
  // may be null.
  CallRecord(std::string_view path, grpc::CallbackServerContext& rpc,
             const AccessControl* access, SpanExporter* spans);
  CallRecord(const CallRecord&) = delete;
  CallRecord& operator=(const CallRecord&) = delete;
  // Writes the line to the log, and exports the span.
  ~CallRecord();

  // Adds the bytes of a message that the client sent, or that it gets.
  void Received(int64_t bytes) { received_bytes_ += bytes; }
  void Sent(int64_t bytes) { sent_bytes_ += bytes; }

  // Call it once, before gRPC gets the status. `stats` is how the answer was
  // computed, if the status is OK, and `shared` has the bytes in shared memory.
  // Adds trailers to the call: its id if it fails, and the span of the server
  // if the client sent a traceparent.
  void Finished(const absl::Status& status, const RunStats& stats,
                const CallBytes& shared = {});

  // Call it when gRPC calls OnCancel: the client does not get the status.
  void Cancelled();

 private:
  CallRecord(std::string_view name, std::optional<ServiceMethod> method,
             grpc::CallbackServerContext& rpc, LoadMeter* load,
             const AccessControl* access, SpanExporter* spans);

  std::chrono::nanoseconds age() const {
    return std::chrono::steady_clock::now() - begin_;
  }
  // What the line calls the call. No other call of this process has this id.
  std::string id() const;
  // The code that the client gets.
  absl::StatusCode ClientsCode() const;
  // The span of the call, if there is a trace.
  TraceContext span() const;
  void Count(const absl::Status& status, const RunStats& stats,
             const CallBytes& shared);
  void Log() const;
  void ExportSpan() const;

  const std::string_view name_;
  const std::optional<ServiceMethod> method_;
  grpc::CallbackServerContext& rpc_;
  LoadMeter* const load_;
  SpanExporter* const spans_;
  const uint64_t number_;
  const std::optional<TraceContext> trace_;  // the client's
  // Who calls. Empty unless calls were logged when this one began.
  std::string peer_;
  std::string caller_;  // also empty if only the peer is known
  // A call that ended before its message was complete counts when it is over,
  // because only then it is known whether the client has cancelled it.
  absl::Status uncounted_;
  absl::StatusCode code_ = absl::StatusCode::kOk;
  std::string reason_;  // empty if the status is OK
  RunStats stats_;
  // What a client sees that does not get the status; OK if it gets it.
  std::atomic<absl::StatusCode> cancelled_as_{absl::StatusCode::kOk};
  std::atomic<int64_t> received_bytes_{0};
  std::atomic<int64_t> sent_bytes_{0};
  const std::chrono::steady_clock::time_point begin_ =
      std::chrono::steady_clock::now();
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_RPC_CALL_RECORD_H_
