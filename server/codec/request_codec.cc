#include "server/codec/request_codec.h"

#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "server/codec/options_codec.h"
#include "wire/message_splitter.h"
#include "wire/shm_protocol.h"

namespace attnd::server {
namespace {

// The offset of a tensor in a shared region must be a multiple of this, because
// kernels load aligned vectors.
constexpr int64_t kOffsetAlignment = 64;

// Returns `status` with the path that its field has in the request. The core
// always calls the tensors query, key and value.
absl::Status Renamed(const absl::Status& status,
                     const AttentionTensors& tensors) {
  const std::optional<std::string> field = FieldOf(status);
  if (!field) return status;
  const absl::string_view path = *field;
  const absl::string_view root = path.substr(0, path.find_first_of(".["));
  const std::pair<absl::string_view, TensorRole> names[] = {
      {"query", kQuery}, {"key", kKey}, {"value", kValue}};
  for (const auto& [core_name, role] : names) {
    if (root != core_name) continue;
    return WithField(status, absl::StrCat(tensors.by_role[role].path,
                                          path.substr(root.size())));
  }
  return status;
}

absl::StatusOr<TensorSpec> SpecOf(const AttentionTensors::Field& in) {
  if (in.tensor == nullptr) return FieldError(in.path, "a tensor", "none");
  return DecodeSpec(*in.tensor, in.path);
}

absl::StatusOr<AttentionProblem> DecodeProblem(
    const AttentionTensors& tensors) {
  std::array<TensorSpec, 3> specs;
  for (const TensorRole role : {kQuery, kKey, kValue}) {
    ATTND_ASSIGN_OR_RETURN(specs[role], SpecOf(tensors.by_role[role]));
  }
  ATTND_ASSIGN_OR_RETURN(const DecodedOptions decoded,
                         DecodeOptions(*tensors.options));
  absl::StatusOr<AttentionProblem> problem =
      AttentionProblem::Create(specs[kQuery], specs[kKey], specs[kValue],
                               decoded.options, decoded.outputs);
  if (!problem.ok()) return Renamed(problem.status(), tensors);
  return problem;
}

absl::Status CheckShape(const TensorSpec& spec, const std::string& path,
                        const std::vector<int64_t>& expected) {
  if (spec.shape.size() != expected.size()) {
    return FieldError(absl::StrCat(path, ".shape"), ShapeText(expected),
                      absl::StrCat("rank ", spec.shape.size()));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    if (spec.shape[i] == expected[i]) continue;
    return FieldError(absl::StrCat(path, ".shape[", i, "]"),
                      absl::StrCat(expected[i], " of ", ShapeText(expected)),
                      absl::StrCat(spec.shape[i]));
  }
  return absl::OkStatus();
}

// Checks what only AttentionBackward needs: that attnd can compute the
// gradients of the problem, and that output, lse and grad_output have its
// shapes.
absl::Status CheckBackward(const AttentionTensors& tensors,
                           const AttentionProblem& problem) {
  ATTND_RETURN_IF_ERROR(Renamed(problem.CheckGradients(), tensors));
  const std::pair<TensorRole, std::vector<int64_t>> answers[] = {
      {kOutput, problem.OutputShape()},
      {kLse, problem.LseShape()},
      {kGradOutput, problem.OutputShape()}};
  for (const auto& [role, shape] : answers) {
    const AttentionTensors::Field& field = tensors.by_role[role];
    ATTND_ASSIGN_OR_RETURN(const TensorSpec spec, SpecOf(field));
    if (spec.dtype != DataType::kF32) {
      return FieldError(absl::StrCat(field.path, ".dtype"),
                        "F32 because gradients are computed in F32",
                        NameOf(spec.dtype));
    }
    ATTND_RETURN_IF_ERROR(CheckShape(spec, field.path, shape));
  }
  return absl::OkStatus();
}

absl::Status CheckCount(const v1::Tensor& tensor, const std::string& path,
                        absl::string_view type, int64_t element_bytes,
                        int64_t expected_bytes, const SplitMessage& split) {
  const bool values = tensor.payload_case() == v1::Tensor::kValues;
  const int64_t expected =
      values ? expected_bytes / element_bytes : expected_bytes;
  const int64_t got = values ? tensor.values().values_size()
                             : PayloadOf(split, tensor.data()).size_bytes;
  if (got == expected) return absl::OkStatus();
  const char* const unit = values ? " numbers" : " bytes";
  return FieldError(
      absl::StrCat(path, values ? ".values" : ".data"),
      absl::StrCat(expected, unit, " for shape [",
                   absl::StrJoin(tensor.shape(), ", "), "] of ", type),
      absl::StrCat(got, unit));
}

// Checks a place in a shared region. Makes the path of the field only if there
// is an error, because making it takes time and most calls have none.
absl::Status CheckPlace(const v1::SharedMemory& place, absl::string_view path,
                        absl::string_view name = "") {
  const int64_t offset_bytes = place.offset_bytes();
  const bool good_handle = place.handle().size() == kHandleBytes;
  if (good_handle && offset_bytes >= 0 &&
      offset_bytes % kOffsetAlignment == 0) {
    return absl::OkStatus();
  }
  const std::string field = absl::StrCat(path, name);
  if (!good_handle) {
    return FieldError(absl::StrCat(field, ".handle"),
                      absl::StrCat("the ", kHandleBytes,
                                   " bytes that the shared-memory socket "
                                   "returned"),
                      absl::StrCat(place.handle().size(), " bytes"));
  }
  return FieldError(
      absl::StrCat(field, ".offset_bytes"),
      absl::StrCat("0 or a positive multiple of ", kOffsetAlignment),
      absl::StrCat(offset_bytes));
}

absl::Status CheckPayload(const AttentionTensors& tensors, TensorRole role,
                          DataType type, int64_t expected_bytes,
                          const SplitMessage& split) {
  const auto& [path, tensor] = tensors.by_role[role];
  const bool mask = role == kMask;
  switch (tensor->payload_case()) {
    case v1::Tensor::kValues:
      if (tensors.streamed) {
        return FieldError(absl::StrCat(path, ".values"), "data or chunks",
                          "values");
      }
      if (mask) {
        return FieldError(
            absl::StrCat(path, ".values"),
            "data, because values are F32 and a mask is BOOL",
            absl::StrCat(tensor->values().values_size(), " numbers"));
      }
      [[fallthrough]];
    case v1::Tensor::kData:
      return CheckCount(*tensor, path, NameOf(type), SizeOf(type),
                        expected_bytes, split);
    case v1::Tensor::kSharedMemory:
      if (!tensors.streamed && !tensors.backward) {
        return CheckPlace(tensor->shared_memory(), path, ".shared_memory");
      }
      return FieldError(
          absl::StrCat(path, ".shared_memory"),
          tensors.streamed ? "data or chunks" : "data or values in the message",
          "shared memory");
    case v1::Tensor::PAYLOAD_NOT_SET:
      if (tensors.streamed) return absl::OkStatus();
      return FieldError(
          path,
          mask ? "data or shared_memory" : "data, values or shared_memory",
          "no payload");
  }
  return absl::InternalError("a tensor has an unknown kind of payload");
}

// Checks that the request has output regions if its first tensor is in shared
// memory, and that it has none otherwise.
absl::Status CheckRegions(const AttentionTensors& tensors, bool return_lse) {
  const v1::AttentionOptions& options = *tensors.options;
  const AttentionTensors::Field& first = tensors.by_role[kQuery];
  const bool shared = first.tensor->has_shared_memory();
  const auto check = [&](const char* field, bool there,
                         const v1::SharedMemory& place, bool needed,
                         const auto& why_not) {
    if (there == needed) {
      return there ? CheckPlace(place, field) : absl::OkStatus();
    }
    return there ? FieldError(field, absl::StrCat("none, because ", why_not()),
                              "a region")
                 : FieldError(field,
                              absl::StrCat("a region, because ", first.path,
                                           " is in shared memory"),
                              "none");
  };
  const auto not_shared = [&]() -> std::string {
    if (tensors.backward) return "gradients travel in the message";
    if (tensors.streamed) return "the answer of a stream travels in chunks";
    return absl::StrCat(first.path, " is not in shared memory");
  };
  absl::Status status =
      check("options.output_region", options.has_output_region(),
            options.output_region(), shared, not_shared);
  status.Update(check("options.lse_region", options.has_lse_region(),
                      options.lse_region(), shared && return_lse, [&] {
                        return shared ? "return_lse is false" : not_shared();
                      }));
  return status;
}

// The type and the size that a tensor of the problem must have.
struct Expected {
  DataType type = DataType::kF32;
  int64_t bytes = 0;
};
std::array<Expected, kTensorRoles> ExpectedPayloads(
    const AttentionProblem& problem) {
  const AttentionParams& params = problem.params();
  std::array<Expected, kTensorRoles> expected;
  expected[kQuery] = {params.query_dtype, problem.query_bytes()};
  expected[kKey] = {params.key_dtype, problem.key_bytes()};
  expected[kValue] = {params.value_dtype, problem.value_bytes()};
  expected[kBias] = {params.bias_dtype, problem.bias_bytes()};
  expected[kMask] = {DataType::kBool, problem.mask_bytes()};
  expected[kOutput].bytes = problem.output_bytes();
  expected[kLse].bytes = problem.lse_bytes();
  expected[kGradOutput].bytes = problem.output_bytes();
  return expected;
}

PayloadKind KindOf(const v1::Tensor& tensor) {
  switch (tensor.payload_case()) {
    case v1::Tensor::kValues:
      return PayloadKind::kValues;
    case v1::Tensor::kSharedMemory:
      return PayloadKind::kSharedMemory;
    default:
      return PayloadKind::kData;
  }
}

template <typename Request>
AttentionTensors WithOptions(const Request& request) {
  const v1::AttentionOptions& options = request.options();
  AttentionTensors tensors;
  tensors.options = &options;  // the default instance if unset
  tensors.by_role[kBias] = {"options.bias",
                            options.has_bias() ? &options.bias() : nullptr};
  tensors.by_role[kMask] = {"options.mask",
                            options.has_mask() ? &options.mask() : nullptr};
  return tensors;
}

}  // namespace

AttentionTensors AttentionTensors::Of(const v1::AttentionRequest& in) {
  AttentionTensors out = WithOptions(in);
  out.by_role[kQuery] = {"query", in.has_query() ? &in.query() : nullptr};
  out.by_role[kKey] = {"key", in.has_key() ? &in.key() : nullptr};
  out.by_role[kValue] = {"value", in.has_value() ? &in.value() : nullptr};
  return out;
}

AttentionTensors AttentionTensors::OfStream(const v1::AttentionRequest& in) {
  AttentionTensors out = Of(in);
  out.streamed = true;
  return out;
}

AttentionTensors AttentionTensors::Of(const v1::SelfAttentionRequest& in) {
  AttentionTensors out = WithOptions(in);
  for (const TensorRole role : {kQuery, kKey, kValue}) {
    out.by_role[role] = {"sequence",
                         in.has_sequence() ? &in.sequence() : nullptr};
  }
  return out;
}

AttentionTensors AttentionTensors::Of(const v1::CrossAttentionRequest& in) {
  AttentionTensors out = WithOptions(in);
  out.by_role[kQuery] = {"queries", in.has_queries() ? &in.queries() : nullptr};
  for (const TensorRole role : {kKey, kValue}) {
    out.by_role[role] = {"kv_sequence",
                         in.has_kv_sequence() ? &in.kv_sequence() : nullptr};
  }
  return out;
}

AttentionTensors AttentionTensors::Of(const v1::AttentionBackwardRequest& in) {
  AttentionTensors out = WithOptions(in);
  out.backward = true;
  out.by_role[kQuery] = {"query", in.has_query() ? &in.query() : nullptr};
  out.by_role[kKey] = {"key", in.has_key() ? &in.key() : nullptr};
  out.by_role[kValue] = {"value", in.has_value() ? &in.value() : nullptr};
  out.by_role[kOutput] = {"output", in.has_output() ? &in.output() : nullptr};
  out.by_role[kLse] = {"lse", in.has_lse() ? &in.lse() : nullptr};
  out.by_role[kGradOutput] = {
      "grad_output", in.has_grad_output() ? &in.grad_output() : nullptr};
  return out;
}

absl::StatusOr<DecodedRequest> DecodeRequest(const AttentionTensors& tensors,
                                             const SplitMessage& split) {
  ATTND_ASSIGN_OR_RETURN(AttentionProblem problem, DecodeProblem(tensors));
  if (tensors.backward) {
    ATTND_RETURN_IF_ERROR(CheckBackward(tensors, problem));
  }
  const PayloadKind kind = KindOf(*tensors.by_role[kQuery].tensor);
  const DataType output_type = problem.params().output_dtype;
  if (kind == PayloadKind::kValues && output_type != DataType::kF32) {
    return FieldError("options.output_dtype",
                      "F32 because values are always F32", NameOf(output_type));
  }
  DecodedRequest decoded{std::move(problem), kind};
  const auto expected = ExpectedPayloads(decoded.problem);
  for (size_t i = 0; i < kTensorRoles; ++i) {
    if (tensors.by_role[i].tensor == nullptr) continue;
    const auto& [type, bytes] = expected[i];
    ATTND_RETURN_IF_ERROR(
        CheckPayload(tensors, static_cast<TensorRole>(i), type, bytes, split));
    decoded.bytes[i] = bytes;
  }
  // In a request to AttentionBackward, the first tensor cannot be in a region
  // here, because CheckPayload has refused that.
  ATTND_RETURN_IF_ERROR(
      CheckRegions(tensors, decoded.problem.params().return_lse));
  return decoded;
}

void CopyValues(const v1::Tensor& tensor, std::byte* to) {
  const auto& values = tensor.values().values();
  if (values.empty()) return;
  std::memcpy(to, values.data(),
              static_cast<size_t>(values.size()) * sizeof(float));
}

}  // namespace attnd::server
