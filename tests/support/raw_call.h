// Bytes to any method, bytes and status back: a client that may send what no
// generated stub would. The only file of the support that includes gRPC.
#ifndef ATTND_TESTS_SUPPORT_RAW_CALL_H_
#define ATTND_TESTS_SUPPORT_RAW_CALL_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace attnd::testing {

struct RawReply {
  int code = 0;  // of google.rpc.Code
  std::string message;
  std::string details;  // a serialized google.rpc.Status
  std::vector<std::string> responses;
};

struct RawOptions {
  std::chrono::milliseconds timeout{120'000};
  // Called with each response; the call is cancelled once it returns false.
  std::function<bool(const std::string&)> keep_going;
  bool gzip = false;  // compress the request
  // Cancels once this much time has passed, if ever.
  std::chrono::milliseconds cancel_after{0};
};

// One connection of its own. Thread-safe.
class RawClient {
 public:
  explicit RawClient(const std::string& address);
  ~RawClient();

  // `method` is "/attnd.v1.AttentionService/Attention". Sends `request` and
  // waits for the end of the call, whatever its kind.
  RawReply Call(const std::string& method, const std::string& request,
                const RawOptions& options = {});

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_RAW_CALL_H_
