// From the contract's options and types to the core's. Checks what only the
// wire knows (numbers of enums, types, lengths of lists); what values may be
// AttentionProblem::Create decides. Copies no tensor.
#ifndef ATTND_SERVER_CODEC_OPTIONS_CODEC_H_
#define ATTND_SERVER_CODEC_OPTIONS_CODEC_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_params.h"

namespace attnd::server {

// "F16".
absl::string_view TypeName(DataType type);

// The type and shape of a float tensor, which stands at `path` in the request:
// "query". INVALID_ARGUMENT names what is wrong.
absl::StatusOr<TensorSpec> DecodeSpec(const v1::Tensor& tensor,
                                      absl::string_view path);

// The `dtype` of a request that names a problem without its tensors; unset
// means F32.
absl::StatusOr<DataType> DecodeProblemType(v1::DataType type);

// The field `options` of a request. Knows nothing of its tensors' payloads and
// of the regions, which are the caller's to check.
absl::StatusOr<AttentionOptions> DecodeOptions(const v1::AttentionOptions& in);

// The most that DecodeOptions allocates for the lists of `options`.
int64_t DecodedListBytes(const v1::AttentionOptions& options);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_OPTIONS_CODEC_H_
