// Converts the options and the types of a request to those of the core. Checks
// what cannot be wrong in the core's own types: numbers of enums, missing types
// and lengths of lists. AttentionProblem::Create checks the values. Does not
// copy tensors.
#ifndef ATTND_SERVER_CODEC_OPTIONS_CODEC_H_
#define ATTND_SERVER_CODEC_OPTIONS_CODEC_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_params.h"

namespace attnd::server {

// Returns the type and the shape of a float tensor. `path` is the path of the
// tensor in the request, such as "query". Returns INVALID_ARGUMENT with the
// field that is wrong.
absl::StatusOr<TensorSpec> DecodeSpec(const v1::Tensor& tensor,
                                      absl::string_view path);

// Returns the type in the field `dtype` of a request without tensors. Returns
// F32 if the field is unset, and INVALID_ARGUMENT if it is not a float type.
absl::StatusOr<DataType> DecodeProblemType(v1::DataType type);

// The field `options` of a request: what shapes the scores, and what is
// returned.
struct DecodedOptions {
  AttentionOptions options;
  OutputOptions outputs;
};

// Decodes the field `options` of a request. Does not check the payloads of bias
// and mask, and does not check the shared regions. The caller has to do that.
absl::StatusOr<DecodedOptions> DecodeOptions(const v1::AttentionOptions& in);

// Returns the most bytes that DecodeOptions allocates for the lists of
// `options`.
int64_t DecodedListBytes(const v1::AttentionOptions& options);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_OPTIONS_CODEC_H_
