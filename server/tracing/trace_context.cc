#include "server/tracing/trace_context.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"

namespace attnd::server {
namespace {

// Where the fields of a value begin: version-trace_id-span_id-flags.
constexpr size_t kTraceIdAt = 3;
constexpr size_t kSpanIdAt = 36;
constexpr size_t kFlagsAt = 53;
constexpr size_t kSizeBytes = 55;

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
}

bool IsZero(absl::string_view digits) {
  return digits.find_first_not_of('0') == absl::string_view::npos;
}

// HTTP ignores these around a value, and gRPC does not remove them.
absl::string_view WithoutBlanks(absl::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == absl::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") + 1 - begin);
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(absl::string_view value) {
  value = WithoutBlanks(value);
  if (value.size() < kSizeBytes) return std::nullopt;
  const absl::string_view version = value.substr(0, 2);
  const absl::string_view trace_id = value.substr(kTraceIdAt, 32);
  const absl::string_view span_id = value.substr(kSpanIdAt, 16);
  const absl::string_view flags = value.substr(kFlagsAt, 2);
  for (const size_t dash : {kTraceIdAt - 1, kSpanIdAt - 1, kFlagsAt - 1}) {
    if (value[dash] != '-') return std::nullopt;
  }
  // Later versions can have more fields. Version ff is not allowed.
  if (value.size() > kSizeBytes &&
      (version == "00" || value[kSizeBytes] != '-')) {
    return std::nullopt;
  }
  if (!IsHex(version) || version == "ff" || !IsHex(trace_id) ||
      IsZero(trace_id) || !IsHex(span_id) || IsZero(span_id) || !IsHex(flags)) {
    return std::nullopt;
  }
  // The lowest bit of the flags says whether the caller records the trace.
  const char low = flags[1];
  const int low_digit = low <= '9' ? low - '0' : low - 'a' + 10;
  return TraceContext{.trace_id = std::string(trace_id),
                      .span_id = std::string(span_id),
                      .sampled = low_digit % 2 == 1};
}

std::string Traceparent(const TraceContext& context) {
  return absl::StrCat("00-", context.trace_id, "-", context.span_id,
                      context.sampled ? "-01" : "-00");
}

}  // namespace attnd::server
