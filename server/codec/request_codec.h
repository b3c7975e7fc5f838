// Converts the protobuf messages of requests to problems of core/. Finds out
// which tensor has which role (query, key and so on), and checks that each
// tensor has as many bytes as its shape needs. Does not copy tensors, and does
// not allocate memory of their size.
#ifndef ATTND_SERVER_CODEC_REQUEST_CODEC_H_
#define ATTND_SERVER_CODEC_REQUEST_CODEC_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_problem.h"
#include "wire/message_splitter.h"

namespace attnd::server {

// How the tensors of a request carry their elements. The tensors of its answer
// carry theirs in the same way.
enum class PayloadKind {
  kData,         // bytes in the message or in chunks
  kValues,       // a list of numbers in the message
  kSharedMemory  // a place in a shared region
};

// The roles that the tensors of a request can have. Only requests of
// AttentionBackward have the last three.
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

// The tensors of a request to any rpc that computes attention, by role. One
// tensor can have several roles, as in SelfAttention. Refers to the request's
// message, which must outlive it.
struct AttentionTensors {
  struct Field {
    const char* path = "";               // from the root of the request
    const v1::Tensor* tensor = nullptr;  // null if the request lacks it
  };

  std::array<Field, kTensorRoles> by_role;
  const v1::AttentionOptions* options = nullptr;
  bool backward = false;
  bool streamed = false;  // whether payloads can travel in chunks

  static AttentionTensors Of(const v1::AttentionRequest& request);
  static AttentionTensors Of(const v1::SelfAttentionRequest& request);
  static AttentionTensors Of(const v1::CrossAttentionRequest& request);
  static AttentionTensors Of(const v1::AttentionBackwardRequest& request);
  // Returns the tensors of `header`, which is a field of the first message of
  // AttentionStream. The paths of the fields begin at the header, not at the
  // root of that message.
  static AttentionTensors OfStream(const v1::AttentionRequest& header);
};

// A request that has passed all checks.
struct DecodedRequest {
  AttentionProblem problem;
  PayloadKind kind;
  // The size of each tensor, or 0 if the request does not have the tensor.
  std::array<int64_t, kTensorRoles> bytes{};
};

// Checks and decodes a request. `split` is the result of splitting its message
// (wire/message_splitter.h). Returns INVALID_ARGUMENT that names the field that
// is wrong. Does not check whether the shared memory to which the request
// refers exists and is large enough: FindSharedTensors does so.
absl::StatusOr<DecodedRequest> DecodeRequest(const AttentionTensors& tensors,
                                             const SplitMessage& split);

// Returns whether the elements of `tensor` arrive in chunks, in messages after
// this one. `tensor` must belong to a request that was decoded without an
// error.
inline bool ComesInChunks(const v1::Tensor& tensor) {
  return tensor.payload_case() == v1::Tensor::PAYLOAD_NOT_SET;
}

// Copies the elements of `tensor` to `to`. The tensor must carry them as a list
// of numbers (PayloadKind::kValues).
void CopyValues(const v1::Tensor& tensor, std::byte* to);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_REQUEST_CODEC_H_
