#include "server/status/status_convert.h"

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

constexpr absl::string_view kRetryPayload = "attnd/retry_delay_ms";

// The trailers have the message up to three times: as it is, in the details,
// which are encoded in base64, and there again as the description of a field
// violation. With these limits that is less than 4 KiB.
constexpr size_t kMaxMessageBytes = 768;
constexpr size_t kMaxFieldBytes = 128;

// Returns the first `limit` bytes of `text`. Bytes that are not ASCII become
// '?', because the strings of protobuf must be valid UTF-8, and a text may
// contain any value that a client sent, or end in the middle of a character.
std::string Cut(absl::string_view text, size_t limit) {
  std::string cut(text.substr(0, limit));
  for (char& c : cut) {
    if (static_cast<unsigned char>(c) >= 0x80) c = '?';
  }
  if (text.size() > limit) cut += "...";
  return cut;
}

std::string_view DefaultReason(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return kInvalidField;
    case absl::StatusCode::kResourceExhausted:
      return kMemoryBudget;
    case absl::StatusCode::kUnimplemented:
      return kNotImplemented;
    case absl::StatusCode::kFailedPrecondition:
      return kSharedMemoryOff;
    case absl::StatusCode::kNotFound:
      return kUnknownRegion;
    case absl::StatusCode::kPermissionDenied:
      return kAdminRoleRequired;
    case absl::StatusCode::kUnavailable:
      return kDraining;
    case absl::StatusCode::kDeadlineExceeded:
      return kDeadlineExceeded;
    case absl::StatusCode::kCancelled:
      return kCancelled;
    default:
      return kInternal;
  }
}

std::optional<std::chrono::milliseconds> RetryDelay(
    const absl::Status& status) {
  int64_t delay_ms = 0;
  const auto payload = status.GetPayload(kRetryPayload);
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &delay_ms)) {
    return std::nullopt;
  }
  return std::chrono::milliseconds(delay_ms);
}

}  // namespace

absl::StatusCode WireCode(absl::StatusCode code) {
  if (code == absl::StatusCode::kOk) return code;
  // Codes that attnd never uses on purpose show a bug of attnd.
  return DefaultReason(code) == kInternal ? absl::StatusCode::kInternal : code;
}

std::string WireReason(const absl::Status& status) {
  return ReasonOf(status).value_or(std::string(DefaultReason(status.code())));
}

WireStatus ToWireStatus(const absl::Status& status) {
  if (status.ok()) return {};
  const absl::StatusCode code = WireCode(status.code());
  WireStatus wire;
  wire.code = static_cast<int>(code);
  wire.message = Cut(status.message(), kMaxMessageBytes);
  google::rpc::Status rpc;
  rpc.set_code(wire.code);
  rpc.set_message(wire.message);

  google::rpc::ErrorInfo info;
  info.set_domain("attnd");
  const std::string reason = WireReason(status);
  info.set_reason(reason);
  rpc.add_details()->PackFrom(info);

  std::optional<std::string> field = FieldOf(status);
  // An empty field means that the error concerns the message as a whole.
  if (!field && (reason == kMalformedMessage || reason == kTooManyFields)) {
    field = "";
  }
  if (field) {
    google::rpc::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(Cut(*field, kMaxFieldBytes));
    violation->set_description(wire.message);
    rpc.add_details()->PackFrom(bad);
  }
  wire.retry_delay = RetryDelay(status);
  if (wire.retry_delay) {
    const int64_t delay_ms = wire.retry_delay->count();
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(delay_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(
        static_cast<int32_t>(delay_ms % 1000 * 1'000'000));
    rpc.add_details()->PackFrom(retry);
  }
  wire.details = rpc.SerializeAsString();
  return wire;
}

absl::Status WithRetryDelay(absl::Status status,
                            std::chrono::milliseconds delay) {
  status.SetPayload(kRetryPayload, absl::Cord(absl::StrCat(delay.count())));
  return status;
}

absl::Status RefuseField(absl::StatusCode code, absl::string_view field,
                         absl::string_view why, absl::string_view reason) {
  absl::Status refusal(code, absl::StrCat(field, ": ", why));
  // FieldError knows how to attach a field to a status, so the payload is
  // copied from there.
  FieldError(std::string(field), "", "")
      .ForEachPayload([&](absl::string_view type, const absl::Cord& payload) {
        refusal.SetPayload(type, payload);
      });
  return WithReason(std::move(refusal), std::string(reason));
}

}  // namespace attnd::server
