// From the contract's messages to the core's types. The one place that knows
// which fields of the contract this build does not serve yet. Copies no tensor
// and allocates nothing of a tensor's size.
#ifndef ATTND_SERVER_REQUEST_CODEC_H_
#define ATTND_SERVER_REQUEST_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_params.h"
#include "core/attention_problem.h"
#include "server/wire_message.h"

namespace attnd::server {

// What a request's tensors travel as, and what the answer's will.
enum class PayloadKind { kData, kValues };

// The options as the core knows them. `path` is where they stand in the
// request: "options". INVALID_ARGUMENT for what is wrong in itself,
// UNIMPLEMENTED for what no build serves yet, both naming the field. `scale`,
// `temperature` and `block_size` are passed on unchecked:
// AttentionProblem::Create refuses them.
absl::StatusOr<AttentionOptions> DecodeOptions(const v1::AttentionOptions& in,
                                               absl::string_view path);

// The `dtype` of a request that names a problem without its tensors; unset
// means F32. Errors as above.
absl::Status CheckProblemType(v1::DataType type);

// One tensor of a request, by its name there.
struct NamedTensor {
  absl::string_view field;
  const v1::Tensor* tensor = nullptr;
};

// A request of any of the three forward methods: which tensor of it plays
// which part. Borrows the message.
struct AttentionTensors {
  NamedTensor query;
  NamedTensor key;
  NamedTensor value;
  const v1::AttentionOptions* options = nullptr;

  static AttentionTensors Of(const v1::AttentionRequest& request);
  static AttentionTensors Of(const v1::SelfAttentionRequest& request);
  static AttentionTensors Of(const v1::CrossAttentionRequest& request);
};

// A request that was found good, its tensors' byte counts included.
struct DecodedRequest {
  AttentionProblem problem;
  PayloadKind kind;
};

absl::StatusOr<DecodedRequest> DecodeRequest(const AttentionTensors& tensors,
                                             const SplitMessage& split);

// Copies the elements of a tensor of a decoded request to `to`.
void CopyElements(const v1::Tensor& tensor, const SplitMessage& split,
                  const ReceivedMessage& received, std::byte* to);

}  // namespace attnd::server

#endif  // ATTND_SERVER_REQUEST_CODEC_H_
