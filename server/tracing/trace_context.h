// The W3C trace context of a call (https://www.w3.org/TR/trace-context/): which
// trace of a distributed system the call belongs to. Does not use gRPC.
#ifndef ATTND_SERVER_TRACING_TRACE_CONTEXT_H_
#define ATTND_SERVER_TRACING_TRACE_CONTEXT_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace attnd::server {

// The header and the key of gRPC's metadata that carries a trace context.
inline constexpr char kTraceparent[] = "traceparent";

// A span of a trace: one operation of one program. The ids are lower-case
// hexadecimal numbers, and not zero.
struct TraceContext {
  std::string trace_id;  // 32 digits
  std::string span_id;   // 16 digits
  // Whether the caller records this trace.
  bool sampled = false;
};

// Parses the value of a `traceparent` header. The result has the span of the
// caller. Accepts version 00, and later versions as the standard asks. Returns
// nullopt if the value is not valid.
std::optional<TraceContext> ParseTraceparent(absl::string_view value);

// Returns the value of a `traceparent` header, in version 00.
std::string Traceparent(const TraceContext& context);

}  // namespace attnd::server

#endif  // ATTND_SERVER_TRACING_TRACE_CONTEXT_H_
