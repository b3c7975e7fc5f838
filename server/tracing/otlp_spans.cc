// The SpanExporter of a build with OpenTelemetry.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "opentelemetry/common/timestamp.h"
#include "opentelemetry/exporters/otlp/otlp_http_exporter.h"
#include "opentelemetry/exporters/otlp/otlp_http_exporter_options.h"
#include "opentelemetry/nostd/shared_ptr.h"
#include "opentelemetry/nostd/variant.h"
#include "opentelemetry/sdk/common/attribute_utils.h"
#include "opentelemetry/sdk/common/global_log_handler.h"
#include "opentelemetry/sdk/instrumentationscope/instrumentation_scope.h"
#include "opentelemetry/sdk/resource/resource.h"
#include "opentelemetry/sdk/trace/batch_span_processor.h"
#include "opentelemetry/sdk/trace/batch_span_processor_options.h"
#include "opentelemetry/sdk/trace/exporter.h"
#include "opentelemetry/sdk/trace/recordable.h"
#include "opentelemetry/trace/propagation/http_trace_context.h"
#include "opentelemetry/trace/span_context.h"
#include "opentelemetry/trace/span_metadata.h"
#include "opentelemetry/trace/trace_flags.h"
#include "server/tracing/span_exporter.h"
#include "server/version.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

namespace otlp = opentelemetry::exporter::otlp;
namespace sdk = opentelemetry::sdk;
namespace trace = opentelemetry::trace;
using sdk::common::internal_log::GlobalLogHandler;
using sdk::common::internal_log::LogLevel;
using Ids = trace::propagation::HttpTraceContext;

constexpr std::chrono::seconds kEndTime{1};
// How long a collector may take to answer. The end of the process waits for a
// request in progress, which OpenTelemetry cannot break off.
constexpr std::chrono::seconds kRequestTime{2};
constexpr char kServiceName[] = "service.name";

// Sends the SDK's messages to the log, at most one in ten seconds, because a
// collector that does not answer causes one for each batch.
class LogHandler final : public sdk::common::internal_log::LogHandler {
 public:
  void Handle(LogLevel level, const char*, int, const char* message,
              const sdk::common::AttributeMap&) noexcept override {
    if (level != LogLevel::Error && level != LogLevel::Warning) return;
    if (message == nullptr) return;
    const auto now = std::chrono::steady_clock::now();
    {
      const std::lock_guard lock(mutex_);
      if (now < next_) return;
      next_ = now + std::chrono::seconds(10);
    }
    try {
      spdlog::warn("OpenTelemetry: {}", message);
    } catch (...) {  // a line of the log is not worth the end of the process
    }
  }

 private:
  std::mutex mutex_;
  std::chrono::steady_clock::time_point next_;
};

// The environment names the service, or else it is attnd.
sdk::resource::Resource ServiceResource() {
  sdk::resource::ResourceAttributes attributes = {
      {"service.version", std::string(kVersion)}};
  const sdk::resource::Resource named =
      sdk::resource::Resource::Create(attributes);
  const auto name = named.GetAttributes().find(kServiceName);
  const auto* text =
      name == named.GetAttributes().end()
          ? nullptr
          : opentelemetry::nostd::get_if<std::string>(&name->second);
  if (text != nullptr && text->rfind("unknown_service", 0) != 0) return named;
  attributes.SetAttribute(kServiceName, std::string("attnd"));
  return sdk::resource::Resource::Create(attributes);
}

// Which codes are errors of the server, by OpenTelemetry's conventions for
// gRPC: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and
// DATA_LOSS.
bool IsServerError(int code) {
  return code == 2 || code == 4 || (code >= 12 && code <= 15);
}

}  // namespace

struct SpanExporter::State {
  sdk::resource::Resource resource = ServiceResource();
  std::unique_ptr<sdk::instrumentationscope::InstrumentationScope> scope =
      sdk::instrumentationscope::InstrumentationScope::Create("attnd",
                                                              kVersion);
  sdk::trace::SpanExporter* exporter = nullptr;  // of `spans`
  std::unique_ptr<sdk::trace::SpanProcessor> spans;
};

bool SpanExporter::IsBuiltIn() { return true; }

SpanExporter::SpanExporter() : state_(std::make_unique<State>()) {
  GlobalLogHandler::SetLogHandler(
      opentelemetry::nostd::shared_ptr<sdk::common::internal_log::LogHandler>(
          new LogHandler));
  otlp::OtlpHttpExporterOptions to;  // from the environment
  to.timeout =
      std::min<std::chrono::system_clock::duration>(to.timeout, kRequestTime);
  auto exporter = std::make_unique<otlp::OtlpHttpExporter>(to);
  state_->exporter = exporter.get();
  sdk::trace::BatchSpanProcessorOptions options;
  // ForceFlush looks only this often whether its own time is over.
  options.schedule_delay_millis = kEndTime;
  state_->spans = std::make_unique<sdk::trace::BatchSpanProcessor>(
      std::move(exporter), options);
}

SpanExporter::~SpanExporter() {
  state_->spans->ForceFlush(kEndTime);
  // Without this, the processor would send all spans that still wait.
  state_->exporter->Shutdown(std::chrono::microseconds(1));
  state_->spans->Shutdown();
}

void SpanExporter::Export(const CallSpan& span) {
  std::unique_ptr<sdk::trace::Recordable> record =
      state_->spans->MakeRecordable();
  if (record == nullptr) return;
  const trace::TraceFlags flags(trace::TraceFlags::kIsSampled);
  record->SetIdentity(
      trace::SpanContext(Ids::TraceIdFromHex(span.context.trace_id),
                         Ids::SpanIdFromHex(span.context.span_id), flags,
                         /*is_remote=*/false),
      Ids::SpanIdFromHex(span.parent_span_id));
  record->SetTraceFlags(flags);
  record->SetResource(state_->resource);
  record->SetInstrumentationScope(*state_->scope);
  record->SetName(span.method);
  record->SetSpanKind(trace::SpanKind::kServer);
  record->SetStartTime(opentelemetry::common::SystemTimestamp(span.begin));
  record->SetDuration(span.time);
  record->SetAttribute("rpc.system", "grpc");
  record->SetAttribute("rpc.grpc.status_code", span.code);
  record->SetAttribute("attnd.request.id", span.request_id.c_str());
  record->SetAttribute("attnd.queue_us",
                       static_cast<int64_t>(span.queue_time.count() / 1000));
  record->SetAttribute("attnd.compute_us",
                       static_cast<int64_t>(span.compute_time.count() / 1000));
  if (IsServerError(span.code)) {
    record->SetStatus(trace::StatusCode::kError, "");
  }
  state_->spans->OnEnd(std::move(record));
}

}  // namespace attnd::server
