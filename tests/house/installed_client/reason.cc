// Returns what the generated code of google.rpc reads from an error.
#include <cstddef>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

// Returns "REASON (DOMAIN)" of a serialized google.rpc.Status. The text is
// valid until the next call.
extern "C" const char* ReasonByGoogleapis(const char* bytes, size_t size) {
  static std::string text;
  google::rpc::Status status;
  google::rpc::ErrorInfo info;
  text.clear();
  if (status.ParseFromArray(bytes, static_cast<int>(size)) &&
      status.details_size() == 1 && status.details(0).UnpackTo(&info)) {
    text = info.reason() + " (" + info.domain() + ")";
  }
  return text.c_str();
}
