// Converts the options and types of the contract to those of the core. Checks
// what only the wire can have wrong: numbers of enums, missing types and
// lengths of lists. AttentionProblem::Create checks the values. Copies no
// tensor.
#ifndef ATTND_SERVER_CODEC_OPTIONS_CODEC_H_
#define ATTND_SERVER_CODEC_OPTIONS_CODEC_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_params.h"

namespace attnd::server {

// Returns the type and shape of a float tensor. `path` is its place in the
// request, such as "query". INVALID_ARGUMENT names the field at fault.
absl::StatusOr<TensorSpec> DecodeSpec(const v1::Tensor& tensor,
                                      absl::string_view path);

// Returns the type that the field `dtype` of a request without tensors names.
// Unset means F32.
absl::StatusOr<DataType> DecodeProblemType(v1::DataType type);

struct DecodedOptions {
  AttentionOptions options;
  OutputOptions outputs;
};

// Decodes the field `options` of a request. The caller checks the payloads of
// its tensors, and the regions.
absl::StatusOr<DecodedOptions> DecodeOptions(const v1::AttentionOptions& in);

// Returns the most bytes that DecodeOptions allocates for the lists of
// `options`.
int64_t DecodedListBytes(const v1::AttentionOptions& options);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_OPTIONS_CODEC_H_
