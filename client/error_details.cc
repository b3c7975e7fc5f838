#include "client/error_details.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/wire_fields.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "proto/message_pieces.h"

// google.rpc's messages are read and written by hand. Their generated code
// registers google/rpc/*.proto with protobuf, which ends a program that links
// the same files from elsewhere, as every user of googleapis does.
namespace attnd::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr char kDomain[] = "attnd.client";
constexpr char kTypePrefix[] = "type.googleapis.com/";
constexpr char kErrorInfo[] = "google.rpc.ErrorInfo";
constexpr char kBadRequest[] = "google.rpc.BadRequest";
constexpr char kRetryInfo[] = "google.rpc.RetryInfo";

// The numbers of the fields, by message.
namespace status_field {
constexpr int kCode = 1, kMessage = 2, kDetails = 3;
}  // namespace status_field
namespace any_field {
constexpr int kTypeUrl = 1, kValue = 2;
}  // namespace any_field
namespace error_info_field {
constexpr int kReason = 1, kDomain = 2;
}  // namespace error_info_field
namespace bad_request_field {
constexpr int kViolations = 1;
}  // namespace bad_request_field
namespace violation_field {
constexpr int kField = 1, kDescription = 2;
}  // namespace violation_field
namespace retry_info_field {
constexpr int kDelay = 1;
}  // namespace retry_info_field
namespace duration_field {
constexpr int kSeconds = 1, kNanos = 2;
}  // namespace duration_field

// A message of two strings, which several are: Any, ErrorInfo, a violation.
struct TwoStrings {
  std::string first;
  std::string second;
};

bool ReadTwoStrings(CodedInputStream& in, int first_number, int second_number,
                    TwoStrings& strings) {
  return ReadFields(in, nullptr, [&](uint32_t tag) -> std::optional<bool> {
    if (tag == BytesTag(first_number)) {
      return WireFormatLite::ReadBytes(&in, &strings.first);
    }
    if (tag == BytesTag(second_number)) {
      return WireFormatLite::ReadBytes(&in, &strings.second);
    }
    return std::nullopt;
  });
}

// The details of a Status, each as type and serialized message.
bool ReadStatus(CodedInputStream& in, std::vector<TwoStrings>& details) {
  return ReadFields(in, nullptr, [&](uint32_t tag) -> std::optional<bool> {
    if (tag != BytesTag(status_field::kDetails)) return std::nullopt;
    return ReadNested(in, [&] {
      return ReadTwoStrings(in, any_field::kTypeUrl, any_field::kValue,
                            details.emplace_back());
    });
  });
}

bool ReadViolations(CodedInputStream& in,
                    std::vector<FieldViolation>& violations) {
  return ReadFields(in, nullptr, [&](uint32_t tag) -> std::optional<bool> {
    if (tag != BytesTag(bad_request_field::kViolations)) return std::nullopt;
    TwoStrings violation;
    const bool good = ReadNested(in, [&] {
      return ReadTwoStrings(in, violation_field::kField,
                            violation_field::kDescription, violation);
    });
    violations.push_back(
        {std::move(violation.first), std::move(violation.second)});
    return good;
  });
}

bool ReadDuration(CodedInputStream& in, int64_t& seconds, int32_t& nanos) {
  return ReadFields(in, nullptr, [&](uint32_t tag) -> std::optional<bool> {
    if (tag == VarintTag(duration_field::kSeconds)) {
      return WireFormatLite::ReadPrimitive<int64_t, WireFormatLite::TYPE_INT64>(
          &in, &seconds);
    }
    if (tag == VarintTag(duration_field::kNanos)) {
      return WireFormatLite::ReadPrimitive<int32_t, WireFormatLite::TYPE_INT32>(
          &in, &nanos);
    }
    return std::nullopt;
  });
}

bool ReadRetryDelay(CodedInputStream& in, absl::Duration& delay) {
  int64_t seconds = 0;
  int32_t nanos = 0;
  const bool good =
      ReadFields(in, nullptr, [&](uint32_t tag) -> std::optional<bool> {
        if (tag != BytesTag(retry_info_field::kDelay)) return std::nullopt;
        return ReadNested(in, [&] { return ReadDuration(in, seconds, nanos); });
      });
  delay = absl::Seconds(seconds) + absl::Nanoseconds(nanos);
  return good;
}

CodedInputStream StreamOf(const std::string& bytes) {
  return CodedInputStream(reinterpret_cast<const uint8_t*>(bytes.data()),
                          static_cast<int>(bytes.size()));
}

// Adds what one detail says to `details`; ignores a detail that does not parse.
void TakeDetail(const TwoStrings& any, ErrorDetails& details) {
  const auto is = [&](const char* name) {
    return absl::EndsWith(any.first, absl::StrCat("/", name));
  };
  CodedInputStream in = StreamOf(any.second);
  TwoStrings info;
  std::vector<FieldViolation> violations;
  absl::Duration delay;
  if (is(kErrorInfo)) {
    if (!ReadTwoStrings(in, error_info_field::kReason,
                        error_info_field::kDomain, info)) {
      return;
    }
    details.reason = std::move(info.first);
    details.domain = std::move(info.second);
  } else if (is(kBadRequest)) {
    if (!ReadViolations(in, violations)) return;
    for (FieldViolation& violation : violations) {
      details.field_violations.push_back(std::move(violation));
    }
  } else if (is(kRetryInfo)) {
    if (ReadRetryDelay(in, delay)) details.retry_delay = delay;
  }
}

// A field that is a text or a message that is encoded already.
std::string Field(int number, absl::string_view content) {
  std::string field;
  AppendPrefix(number, content.size(), field);
  return absl::StrCat(field, content);
}

// A field of a Status that is one of its details.
std::string Detail(const char* name, const std::string& message) {
  return Field(
      status_field::kDetails,
      absl::StrCat(Field(any_field::kTypeUrl, absl::StrCat(kTypePrefix, name)),
                   Field(any_field::kValue, message)));
}

// A status that carries itself as a google.rpc.Status with a reason and
// `more_details`.
absl::Status MakeStatus(absl::StatusCode code, absl::string_view message,
                        absl::string_view reason,
                        absl::string_view more_details = "") {
  // absl::Status and google.rpc.Status number their codes alike, by definition.
  const int number = static_cast<int>(code);
  const char encoded_code[] = {
      static_cast<char>(VarintTag(status_field::kCode)),
      static_cast<char>(number)};
  static_assert(static_cast<int>(absl::StatusCode::kUnauthenticated) < 128,
                "every code is a varint of one byte");
  absl::Cord payload(absl::string_view(encoded_code, sizeof(encoded_code)));
  payload.Append(Field(status_field::kMessage, message));
  payload.Append(
      Detail(kErrorInfo, absl::StrCat(Field(error_info_field::kReason, reason),
                                      Field(error_info_field::kDomain,
                                            absl::string_view(kDomain)))));
  payload.Append(more_details);
  absl::Status status(code, message);
  status.SetPayload(kStatusPayloadUrl, payload);
  return status;
}

}  // namespace

ErrorDetails DetailsOf(const absl::Status& status) {
  ErrorDetails details;
  const auto payload = status.GetPayload(kStatusPayloadUrl);
  if (!payload || payload->size() > kMaxLength) return details;
  const std::string bytes(*payload);
  CodedInputStream in = StreamOf(bytes);
  std::vector<TwoStrings> anys;
  if (!ReadStatus(in, anys)) return details;
  for (const TwoStrings& any : anys) TakeDetail(any, details);
  return details;
}

absl::Status FieldError(absl::string_view field, absl::string_view expected,
                        absl::string_view got) {
  const std::string description =
      absl::StrCat("expected ", expected, ", got ", got);
  const std::string violation =
      absl::StrCat(Field(violation_field::kField, field),
                   Field(violation_field::kDescription, description));
  return MakeStatus(
      absl::StatusCode::kInvalidArgument,
      absl::StrCat(field, ": ", description), "INVALID_FIELD",
      Detail(kBadRequest, Field(bad_request_field::kViolations, violation)));
}

absl::Status ReasonError(absl::StatusCode code, absl::string_view reason,
                         absl::string_view message) {
  return MakeStatus(code, message, reason);
}

absl::Status BadResponse(absl::string_view message) {
  return ReasonError(absl::StatusCode::kInternal, "BAD_RESPONSE", message);
}

}  // namespace attnd::client
