// What a fake server answers, in plain messages: no gRPC, so that tests and
// their handlers stay visible to thread sanitizer.
#ifndef ATTND_TESTS_CLIENT_FAKE_HANDLER_H_
#define ATTND_TESTS_CLIENT_FAKE_HANDLER_H_

#include <cstddef>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "attnd/v1/attention.pb.h"

namespace attnd::client {

// One call of the four attention methods, in one shape.
struct FakeCall {
  std::string method;
  std::vector<v1::Tensor> tensors;  // in the order of the request's fields
  v1::AttentionOptions options;
};

// The end of a call as it goes over the wire.
struct WireReply {
  int code = 0;
  std::string message = {};
  std::string details = {};  // a serialized google.rpc.Status
};

// Answers arbitrary but well-formed numbers: output[i] = i (as bits where it is
// of 16), lse[i] = -i, gradients[i] = i, in the shapes and types that the
// contract says. Override what a test is about. Methods
// run in threads of gRPC and may block.
class FakeHandler {
 public:
  virtual ~FakeHandler() = default;

  // Types and shapes of what OnAttention answers, which a stream's header has.
  static v1::AttentionResponse DescribeAnswer(const FakeCall& call);

  // Into chunks of how many bytes a streamed answer is cut.
  virtual size_t chunk_bytes() const { return 10'000; }
  // A stream has got as many chunks; not 0 ends it there.
  virtual WireReply OnChunk(int chunks);
  virtual WireReply OnAttention(const FakeCall& call,
                                v1::AttentionResponse* response);
  virtual WireReply OnBackward(const FakeCall& call,
                               v1::AttentionBackwardResponse* response);
  virtual WireReply OnBenchmark(
      const v1::BenchmarkRequest& request,
      const std::function<bool(const v1::BenchmarkResponse&)>& write);
  virtual WireReply OnMemoryEstimate(const v1::MemoryEstimateRequest& request,
                                     v1::MemoryEstimateResponse* response);
  virtual WireReply OnServerInfo(v1::GetServerInfoResponse* response);

  // The attention calls that the answers above were given to.
  std::vector<FakeCall> calls() const;

 private:
  mutable std::mutex mutex_;
  std::vector<FakeCall> calls_;
};

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_FAKE_HANDLER_H_
