// From the contract's messages to the core's types: which tensor plays which
// part, and whether its bytes are as many as its shape says. Copies no tensor
// and allocates nothing of a tensor's size.
#ifndef ATTND_SERVER_CODEC_REQUEST_CODEC_H_
#define ATTND_SERVER_CODEC_REQUEST_CODEC_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_problem.h"
#include "server/codec/payload_splitter.h"

namespace attnd::server {

// What a request's tensors travel as, and what the answer's will.
enum class PayloadKind { kData, kValues, kSharedMemory };

// The parts that tensors of a request play. The last three are those of
// AttentionBackward alone.
enum TensorRole : size_t {
  kQuery,
  kKey,
  kValue,
  kBias,
  kMask,
  kOutput,
  kLse,
  kGradOutput,
  kTensorRoles
};

// One tensor by its path in the request; null where it is unset.
struct NamedTensor {
  const char* path = "";
  const v1::Tensor* tensor = nullptr;
};

// A request of any of the four attention methods: which tensor of it plays
// which part, some of them several. Borrows the message.
struct AttentionTensors {
  std::array<NamedTensor, kTensorRoles> by_role;
  const v1::AttentionOptions* options = nullptr;
  bool backward = false;
  bool streamed = false;  // payloads may come in chunks, and go in chunks

  static AttentionTensors Of(const v1::AttentionRequest& request);
  static AttentionTensors Of(const v1::SelfAttentionRequest& request);
  static AttentionTensors Of(const v1::CrossAttentionRequest& request);
  static AttentionTensors Of(const v1::AttentionBackwardRequest& request);
  // The header of AttentionStream; paths begin below it.
  static AttentionTensors OfStream(const v1::AttentionRequest& header);
};

// A request that was found good, its tensors' byte counts included.
struct DecodedRequest {
  AttentionProblem problem;
  PayloadKind kind;
  std::array<int64_t, kTensorRoles> bytes{};  // 0 where there is no tensor
};

// INVALID_ARGUMENT for what is wrong in itself, by field. Of shared memory it
// checks what needs no region for that; FindSharedTensors does the rest.
absl::StatusOr<DecodedRequest> DecodeRequest(const AttentionTensors& tensors,
                                             const SplitMessage& split);

// Whether the payload of a tensor of a decoded request is still to come.
inline bool ComesInChunks(const v1::Tensor& tensor) {
  return tensor.payload_case() == v1::Tensor::PAYLOAD_NOT_SET;
}

// Copies the elements of a tensor that the request carries as numbers to `to`.
void CopyValues(const v1::Tensor& tensor, std::byte* to);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_REQUEST_CODEC_H_
