#include "tests/client/error_status.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace attnd::client {

std::string SerializedRefusal(const std::string& reason,
                              const std::string& field,
                              const std::string& description,
                              std::optional<absl::Duration> retry_delay) {
  google::rpc::Status status;
  status.set_message(description);
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("attnd");
  status.add_details()->PackFrom(info);
  if (!field.empty()) {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field(field);
    violation->set_description(description);
    status.add_details()->PackFrom(bad_request);
  }
  if (retry_delay) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(
        absl::ToInt64Seconds(*retry_delay));
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(
        absl::ToInt64Nanoseconds(*retry_delay % absl::Seconds(1))));
    status.add_details()->PackFrom(retry);
  }
  return status.SerializeAsString();
}

std::optional<ErrorDetails> DetailsByProtobuf(const std::string& bytes) {
  google::rpc::Status status;
  if (!status.ParseFromString(bytes)) return std::nullopt;
  ErrorDetails details;
  for (const google::protobuf::Any& any : status.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad_request;
    google::rpc::RetryInfo retry;
    if (any.Is<google::rpc::ErrorInfo>()) {
      if (!any.UnpackTo(&info)) return std::nullopt;
      details.reason = info.reason();
      details.domain = info.domain();
    } else if (any.Is<google::rpc::BadRequest>()) {
      if (!any.UnpackTo(&bad_request)) return std::nullopt;
      for (const auto& violation : bad_request.field_violations()) {
        details.field_violations.push_back(
            {violation.field(), violation.description()});
      }
    } else if (any.Is<google::rpc::RetryInfo>()) {
      if (!any.UnpackTo(&retry)) return std::nullopt;
      details.retry_delay = absl::Seconds(retry.retry_delay().seconds()) +
                            absl::Nanoseconds(retry.retry_delay().nanos());
    }
  }
  return details;
}

std::string StatusByProtobuf(const std::string& bytes) {
  google::rpc::Status status;
  if (!status.ParseFromString(bytes)) return "does not parse";
  return std::to_string(status.code()) + ": " + status.message();
}

}  // namespace attnd::client
