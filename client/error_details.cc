#include "client/error_details.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace attnd::client {
namespace {

constexpr char kDomain[] = "attnd.client";

// absl::Status and google.rpc.Status number their codes alike, by definition.
google::rpc::Status StatusProto(absl::StatusCode code,
                                absl::string_view message,
                                absl::string_view reason) {
  google::rpc::Status proto;
  proto.set_code(static_cast<int>(code));
  proto.set_message(std::string(message));
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kDomain);
  proto.add_details()->PackFrom(info);
  return proto;
}

absl::Status ToStatus(const google::rpc::Status& proto) {
  absl::Status status(static_cast<absl::StatusCode>(proto.code()),
                      proto.message());
  status.SetPayload(kStatusPayloadUrl, absl::Cord(proto.SerializeAsString()));
  return status;
}

}  // namespace

ErrorDetails DetailsOf(const absl::Status& status) {
  ErrorDetails details;
  const auto payload = status.GetPayload(kStatusPayloadUrl);
  google::rpc::Status proto;
  if (!payload || !proto.ParseFromString(std::string(*payload))) {
    return details;
  }
  for (const auto& any : proto.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad_request;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) {
      details.reason = info.reason();
      details.domain = info.domain();
    } else if (any.UnpackTo(&bad_request)) {
      for (const auto& violation : bad_request.field_violations()) {
        details.field_violations.push_back(
            {violation.field(), violation.description()});
      }
    } else if (any.UnpackTo(&retry)) {
      details.retry_delay = absl::Seconds(retry.retry_delay().seconds()) +
                            absl::Nanoseconds(retry.retry_delay().nanos());
    }
  }
  return details;
}

absl::Status FieldError(absl::string_view field, absl::string_view expected,
                        absl::string_view got) {
  const std::string description =
      absl::StrCat("expected ", expected, ", got ", got);
  google::rpc::Status proto =
      StatusProto(absl::StatusCode::kInvalidArgument,
                  absl::StrCat(field, ": ", description), "INVALID_FIELD");
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field(std::string(field));
  violation->set_description(description);
  proto.add_details()->PackFrom(bad_request);
  return ToStatus(proto);
}

absl::Status ReasonError(absl::StatusCode code, absl::string_view reason,
                         absl::string_view message) {
  return ToStatus(StatusProto(code, message, reason));
}

absl::Status BadResponse(absl::string_view message) {
  return ReasonError(absl::StatusCode::kInternal, "BAD_RESPONSE", message);
}

}  // namespace attnd::client
