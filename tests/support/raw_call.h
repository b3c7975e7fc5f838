// A client that sends any bytes to any method, and returns bytes and a status.
// It can send what no generated stub sends. Only its source file includes gRPC
// among the files of this folder.
#ifndef ATTND_TESTS_SUPPORT_RAW_CALL_H_
#define ATTND_TESTS_SUPPORT_RAW_CALL_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace attnd::testing {

struct RawReply {
  int code = 0;  // a google.rpc.Code
  std::string message;
  std::string details;  // a serialized google.rpc.Status
  std::vector<std::string> responses;
};

struct RawOptions {
  std::chrono::milliseconds timeout{120'000};
  // Called with each response; the call is cancelled once it returns false.
  std::function<bool(const std::string&)> keep_going;
  bool gzip = false;  // compress the request
  // If this is not 0, the call is cancelled after this time.
  std::chrono::milliseconds cancel_after{0};
};

// Has its own connection. Thread-safe.
class RawClient {
 public:
  explicit RawClient(const std::string& address);
  ~RawClient();

  // `method` has the form "/attnd.v1.AttentionService/Attention", and can be of
  // any kind. Sends `request` and waits for the end of the call.
  RawReply Call(const std::string& method, const std::string& request,
                const RawOptions& options = {});

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_RAW_CALL_H_
