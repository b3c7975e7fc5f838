// The SpanExporter of a build without OpenTelemetry.
#include "server/tracing/span_exporter.h"

namespace attnd::server {

struct SpanExporter::State {};

bool SpanExporter::IsBuiltIn() { return false; }
SpanExporter::SpanExporter() = default;
SpanExporter::~SpanExporter() = default;
void SpanExporter::Export(const CallSpan&) {}

}  // namespace attnd::server
