#include "client/error_details.h"

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/unknown_field_set.h"
#include "wire/reasons.h"

// This file reads and writes the messages of google.rpc as sets of numbered
// fields. It does not use their generated code, because that would register
// google/rpc/*.proto with protobuf. Protobuf ends a program that registers
// these files twice, as a program that also uses googleapis would.
namespace attnd::client {
namespace {

using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

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

// Calls `visit` with the content of each field of `message` that has this
// number and is a text or a message, until one call returns false. Returns
// whether all returned true.
template <typename Visit>
bool ForEach(const UnknownFieldSet& message, int number, const Visit& visit) {
  for (int i = 0; i < message.field_count(); ++i) {
    const UnknownField& field = message.field(i);
    if (field.number() == number &&
        field.type() == UnknownField::TYPE_LENGTH_DELIMITED &&
        !visit(field.length_delimited())) {
      return false;
    }
  }
  return true;
}

// Returns the text of a field. If there are several, the last one counts.
std::string TextOf(const UnknownFieldSet& message, int number) {
  std::string text;
  ForEach(message, number, [&](const std::string& content) {
    text = content;
    return true;
  });
  return text;
}

// Adds what one detail, a google.protobuf.Any, says to `details`. Ignores a
// detail that does not parse.
void TakeDetail(const UnknownFieldSet& any, ErrorDetails& details) {
  const std::string type_url = TextOf(any, any_field::kTypeUrl);
  const auto is = [&](const char* name) {
    return absl::EndsWith(type_url, absl::StrCat("/", name));
  };
  UnknownFieldSet detail;
  if (!detail.ParseFromString(TextOf(any, any_field::kValue))) return;
  if (is(kErrorInfo)) {
    details.reason = TextOf(detail, error_info_field::kReason);
    details.domain = TextOf(detail, error_info_field::kDomain);
  } else if (is(kBadRequest)) {
    std::vector<FieldViolation> violations = details.field_violations;
    const auto take = [&](const std::string& content) {
      UnknownFieldSet violation;
      if (!violation.ParseFromString(content)) return false;
      violations.push_back({TextOf(violation, violation_field::kField),
                            TextOf(violation, violation_field::kDescription)});
      return true;
    };
    if (ForEach(detail, bad_request_field::kViolations, take)) {
      details.field_violations = std::move(violations);
    }
  } else if (is(kRetryInfo)) {
    google::protobuf::Duration delay;
    const auto merge = [&](const std::string& content) {
      return delay.MergeFromString(content);
    };
    if (ForEach(detail, retry_info_field::kDelay, merge)) {
      details.retry_delay =
          absl::Seconds(delay.seconds()) + absl::Nanoseconds(delay.nanos());
    }
  }
}

std::string Serialized(const UnknownFieldSet& message) {
  std::string text;
  message.SerializeToString(&text);
  return text;
}

// Returns the serialized message that consists of these two texts.
std::string TwoTexts(int first_number, absl::string_view first,
                     int second_number, absl::string_view second) {
  UnknownFieldSet message;
  message.AddLengthDelimited(first_number, std::string(first));
  message.AddLengthDelimited(second_number, std::string(second));
  return Serialized(message);
}

void AddDetail(const char* name, const std::string& message,
               UnknownFieldSet& status) {
  status.AddLengthDelimited(
      status_field::kDetails,
      TwoTexts(any_field::kTypeUrl, absl::StrCat(kTypePrefix, name),
               any_field::kValue, message));
}

// Returns a status that carries itself as a google.rpc.Status with a reason.
// `bad_request`, unless empty, is a serialized google.rpc.BadRequest.
absl::Status MakeStatus(absl::StatusCode code, absl::string_view message,
                        absl::string_view reason,
                        const std::string& bad_request = "") {
  UnknownFieldSet rpc;
  // absl::Status and google.rpc.Status number their codes alike, by definition.
  rpc.AddVarint(status_field::kCode, static_cast<uint64_t>(code));
  rpc.AddLengthDelimited(status_field::kMessage, std::string(message));
  AddDetail(kErrorInfo,
            TwoTexts(error_info_field::kReason, reason,
                     error_info_field::kDomain, kDomain),
            rpc);
  if (!bad_request.empty()) AddDetail(kBadRequest, bad_request, rpc);
  absl::Status status(code, message);
  status.SetPayload(kStatusPayloadUrl, absl::Cord(Serialized(rpc)));
  return status;
}

}  // namespace

ErrorDetails DetailsOf(const absl::Status& status) {
  ErrorDetails details;
  const auto payload = status.GetPayload(kStatusPayloadUrl);
  if (!payload || payload->size() > std::numeric_limits<int32_t>::max()) {
    return details;
  }
  UnknownFieldSet rpc;
  if (!rpc.ParseFromString(std::string(*payload))) return details;
  const auto take = [&](const std::string& content) {
    UnknownFieldSet any;
    if (!any.ParseFromString(content)) return false;
    TakeDetail(any, details);
    return true;
  };
  return ForEach(rpc, status_field::kDetails, take) ? details : ErrorDetails();
}

absl::Status FieldError(absl::string_view field, absl::string_view expected,
                        absl::string_view got) {
  const std::string description = ExpectedGot(expected, got);
  UnknownFieldSet bad_request;
  bad_request.AddLengthDelimited(
      bad_request_field::kViolations,
      TwoTexts(violation_field::kField, field, violation_field::kDescription,
               description));
  return MakeStatus(absl::StatusCode::kInvalidArgument,
                    absl::StrCat(field, ": ", description), kInvalidField,
                    Serialized(bad_request));
}

absl::Status ReasonError(absl::StatusCode code, absl::string_view reason,
                         absl::string_view message) {
  return MakeStatus(code, message, reason);
}

absl::Status BadResponse(absl::string_view message) {
  return ReasonError(absl::StatusCode::kInternal, kBadResponse, message);
}

}  // namespace attnd::client
