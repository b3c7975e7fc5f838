#include "tests/client/error_status.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace attnd::client {

std::string SerializedRefusal(const std::string& reason,
                              const std::string& field,
                              const std::string& description) {
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("attnd");
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field(field);
  violation->set_description(description);
  google::rpc::Status status;
  status.add_details()->PackFrom(info);
  status.add_details()->PackFrom(bad_request);
  return status.SerializeAsString();
}

}  // namespace attnd::client
