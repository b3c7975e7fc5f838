// Converts requests of the contract to problems of the core. Finds out which
// tensor plays which part, and checks that each has the bytes of its shape.
// Copies no tensor and allocates nothing of a tensor's size.
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

// How the tensors of a request travel. Those of its answer travel likewise.
enum class PayloadKind { kData, kValues, kSharedMemory };

// The parts that the tensors of a request play. Only AttentionBackward has the
// last three.
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

// The tensors of a request of any of the four attention methods, by the part
// that each plays. A tensor may play several. Borrows the message.
struct AttentionTensors {
  struct Field {
    const char* path = "";               // in the request
    const v1::Tensor* tensor = nullptr;  // null if the request lacks it
  };

  std::array<Field, kTensorRoles> by_role;
  const v1::AttentionOptions* options = nullptr;
  bool backward = false;
  bool streamed = false;  // payloads may travel in chunks, both ways

  static AttentionTensors Of(const v1::AttentionRequest& request);
  static AttentionTensors Of(const v1::SelfAttentionRequest& request);
  static AttentionTensors Of(const v1::CrossAttentionRequest& request);
  static AttentionTensors Of(const v1::AttentionBackwardRequest& request);
  // The header of AttentionStream. Paths begin below the header.
  static AttentionTensors OfStream(const v1::AttentionRequest& header);
};

// A request that was found good.
struct DecodedRequest {
  AttentionProblem problem;
  PayloadKind kind;
  std::array<int64_t, kTensorRoles> bytes{};  // 0 if there is no tensor
};

// Returns INVALID_ARGUMENT, with the field at fault, for a request that is
// wrong in itself. FindSharedTensors checks what depends on a region of shared
// memory.
absl::StatusOr<DecodedRequest> DecodeRequest(const AttentionTensors& tensors,
                                             const SplitMessage& split);

// Returns whether the payload of a tensor of a decoded request is yet to come.
inline bool ComesInChunks(const v1::Tensor& tensor) {
  return tensor.payload_case() == v1::Tensor::PAYLOAD_NOT_SET;
}

// Copies the elements of a tensor that travels as numbers to `to`.
void CopyValues(const v1::Tensor& tensor, std::byte* to);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_REQUEST_CODEC_H_
