// Decides what a fake server answers, in plain messages. It does not use gRPC,
// so that thread sanitizer sees tests and their handlers.
#ifndef ATTND_TESTS_CLIENT_FAKE_HANDLER_H_
#define ATTND_TESTS_CLIENT_FAKE_HANDLER_H_

#include <cstddef>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "attnd/v1/attention.pb.h"

namespace attnd::client {

// A call of one of the four attention methods.
struct FakeCall {
  std::string method;
  std::vector<v1::Tensor> tensors;  // in the order of the request's fields
  v1::AttentionOptions options;
};

// The end of a call as the server sends it.
struct WireReply {
  int code = 0;
  std::string message = {};
  std::string details = {};  // a serialized google.rpc.Status
};

// Returns arbitrary but valid numbers: output[i] = i (as bits, if the type has
// 16 bits), lse[i] = -i and gradients[i] = i, with the shapes and types that
// the contract requires. A test overrides the methods that it is about. gRPC's
// threads call the methods, which may block.
class FakeHandler {
 public:
  virtual ~FakeHandler() = default;

  // Returns the types and shapes of the answer of OnAttention. A stream sends
  // them in its header.
  static v1::AttentionResponse DescribeAnswer(const FakeCall& call);

  // Returns whether to answer a call with this header "authorization", which is
  // empty if the call has none. If not, the call fails with UNAUTHENTICATED.
  virtual bool Admits(const std::string& /*authorization*/) { return true; }

  // Returns the size of the chunks of a streamed answer.
  virtual size_t chunk_bytes() const { return 10'000; }
  // Called when a stream has received `chunks` chunks. An error ends the
  // stream.
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

  // Returns the attention calls that were answered by the methods of this
  // class.
  std::vector<FakeCall> calls() const;

 private:
  mutable std::mutex mutex_;
  std::vector<FakeCall> calls_;
};

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_FAKE_HANDLER_H_
