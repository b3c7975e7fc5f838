// Converts the options and the types of a request from protobuf messages to
// types of core/. Checks what only a message can have wrong: unknown numbers of
// enums, missing types, and lists that are too long. AttentionProblem::Create
// checks the values. Does not copy tensors.
#ifndef ATTND_SERVER_CODEC_OPTIONS_CODEC_H_
#define ATTND_SERVER_CODEC_OPTIONS_CODEC_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_params.h"

namespace attnd::server {

// Returns the type and the shape of a tensor of F32, F16 or BF16. `path` is the
// name of the tensor's field in the request, such as "query". Returns
// INVALID_ARGUMENT that names the field that is wrong.
absl::StatusOr<TensorSpec> DecodeSpec(const v1::Tensor& tensor,
                                      absl::string_view path);

// Converts the field `dtype` of a request that describes a problem without
// tensors (Benchmark, MemoryEstimate). Returns F32 if the field is unset, and
// INVALID_ARGUMENT if it is not F32, F16 or BF16.
absl::StatusOr<DataType> DecodeProblemType(v1::DataType type);

// The field `options` of a request, divided into the options that shape the
// scores and those that say what is returned.
struct DecodedOptions {
  AttentionOptions options;
  OutputOptions outputs;
};

// Decodes the field `options` of a request. Does not check the data of bias and
// mask or their places in shared memory; the caller has to do that.
absl::StatusOr<DecodedOptions> DecodeOptions(const v1::AttentionOptions& in);

// Returns an upper bound of the bytes that DecodeOptions allocates for the
// lists in `options`.
int64_t DecodedListBytes(const v1::AttentionOptions& options);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_OPTIONS_CODEC_H_
