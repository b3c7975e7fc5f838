#include "server/request_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/field_error.h"
#include "server/status_convert.h"

namespace attnd::server {
namespace {

// Collects the first refusal of a list of checks on fields below one path.
class Checks {
 public:
  explicit Checks(absl::string_view path) : path_(path) {}

  std::string Path(absl::string_view field) const {
    return absl::StrCat(path_, ".", field);
  }

  // Wrong in itself, whatever this build can do.
  template <typename Got>
  void Require(bool good, absl::string_view field, absl::string_view expected,
               const Got& got) {
    if (status_.ok() && !good) {
      status_ =
          FieldError(Path(field), std::string(expected), absl::StrCat(got));
    }
  }

  // Right, but not served yet. Reported only where nothing is wrong.
  void Unserved(bool used, absl::string_view field, absl::string_view what) {
    if (unserved_.ok() && used) {
      unserved_ = NotImplementedError(Path(field), what);
    }
  }

  absl::Status Result() const { return status_.ok() ? unserved_ : status_; }

 private:
  absl::string_view path_;
  absl::Status status_;
  absl::Status unserved_;
};

bool KnownFloatType(v1::DataType type) {
  return type == v1::DATA_TYPE_F32 || type == v1::DATA_TYPE_F16 ||
         type == v1::DATA_TYPE_BF16;
}

std::string DataTypeText(v1::DataType type) {
  const std::string& name = v1::DataType_Name(type);
  return name.empty() ? absl::StrCat("unknown value ", static_cast<int>(type))
                      : name;
}

void CheckPositions(const v1::AttentionOptions& in, Checks& checks) {
  checks.Unserved(in.query_offsets_size() > 0, "query_offsets",
                  "positions by query_offsets");
  checks.Require(!in.has_window_left() || in.window_left() >= 0, "window_left",
                 "a number >= 0", in.window_left());
  checks.Unserved(in.has_window_left(), "window_left", "a window");
  checks.Require(!in.has_window_right() || in.window_right() >= 0,
                 "window_right", "a number >= 0", in.window_right());
  checks.Unserved(in.has_window_right(), "window_right", "a window");
}

// The type of a float tensor; beside `values` it is F32 and may be unset.
void CheckFloatType(const v1::Tensor& tensor, absl::string_view field,
                    Checks& checks) {
  const v1::DataType type = tensor.dtype();
  if (tensor.payload_case() == v1::Tensor::kValues) {
    checks.Require(
        type == v1::DATA_TYPE_UNSPECIFIED || type == v1::DATA_TYPE_F32, field,
        "F32 beside values", DataTypeText(type));
  } else {
    checks.Require(KnownFloatType(type), field, "F32, F16 or BF16",
                   DataTypeText(type));
  }
}

// Lists may be long: a path is made for the bad element alone.
template <typename T, typename Good>
void CheckElements(const google::protobuf::RepeatedField<T>& list,
                   absl::string_view field, absl::string_view expected,
                   const Good& good, Checks& checks) {
  const auto bad = std::find_if_not(list.begin(), list.end(), good);
  if (bad == list.end()) return;
  checks.Require(false, absl::StrCat(field, "[", bad - list.begin(), "]"),
                 expected, *bad);
}

void CheckScores(const v1::AttentionOptions& in, Checks& checks) {
  if (in.has_logits_soft_cap()) {
    const float cap = in.logits_soft_cap();
    checks.Require(std::isfinite(cap) && cap > 0, "logits_soft_cap",
                   "a finite number > 0", cap);
    checks.Unserved(true, "logits_soft_cap", "a soft cap");
  }
  CheckElements(
      in.alibi_slopes(), "alibi_slopes", "a finite number",
      [](float slope) { return std::isfinite(slope); }, checks);
  checks.Unserved(in.alibi_slopes_size() > 0, "alibi_slopes", "ALiBi");
  CheckElements(
      in.sink_logits(), "sink_logits", "a finite number or -inf",
      [](float sink) {
        return sink < std::numeric_limits<float>::infinity();  // and no NaN
      },
      checks);
  checks.Unserved(in.sink_logits_size() > 0, "sink_logits", "sinks");
  if (in.has_bias()) CheckFloatType(in.bias(), "bias.dtype", checks);
  checks.Unserved(in.has_bias(), "bias", "a bias");
  checks.Require(!in.has_mask() || in.mask().dtype() == v1::DATA_TYPE_BOOL,
                 "mask.dtype", "BOOL", DataTypeText(in.mask().dtype()));
  checks.Unserved(in.has_mask(), "mask", "a mask");
}

void CheckLengths(const google::protobuf::RepeatedField<int64_t>& lengths,
                  absl::string_view field, absl::string_view what,
                  Checks& checks) {
  CheckElements(
      lengths, field, "a number >= 0", [](int64_t n) { return n >= 0; },
      checks);
  checks.Unserved(!lengths.empty(), field, what);
}

void CheckTypes(const v1::AttentionOptions& in, Checks& checks) {
  checks.Require(v1::Layout_IsValid(in.layout()), "layout",
                 "LAYOUT_BHSD or LAYOUT_BSHD",
                 absl::StrCat("unknown value ", static_cast<int>(in.layout())));
  checks.Unserved(in.layout() == v1::LAYOUT_BSHD, "layout", "LAYOUT_BSHD");
  checks.Require(in.output_dtype() == v1::DATA_TYPE_UNSPECIFIED ||
                     KnownFloatType(in.output_dtype()),
                 "output_dtype", "F32, F16 or BF16",
                 DataTypeText(in.output_dtype()));
  checks.Unserved(in.output_dtype() == v1::DATA_TYPE_F16 ||
                      in.output_dtype() == v1::DATA_TYPE_BF16,
                  "output_dtype", "a 16-bit output");
  checks.Require(
      v1::Precision_IsValid(in.precision()), "precision",
      "PRECISION_AUTO, PRECISION_F32 or PRECISION_BF16",
      absl::StrCat("unknown value ", static_cast<int>(in.precision())));
  checks.Unserved(in.precision() == v1::PRECISION_BF16, "precision",
                  "PRECISION_BF16");
  checks.Unserved(in.has_output_region(), "output_region", "shared memory");
  checks.Unserved(in.has_lse_region(), "lse_region", "shared memory");
}

// The type and payload of one tensor, its byte count aside.
absl::Status CheckTensor(const NamedTensor& in) {
  Checks checks(in.field);
  if (in.tensor == nullptr) {
    return FieldError(std::string(in.field), "a tensor", "none");
  }
  const v1::Tensor& tensor = *in.tensor;
  CheckFloatType(tensor, "dtype", checks);
  checks.Unserved(tensor.payload_case() != v1::Tensor::kValues &&
                      tensor.dtype() != v1::DATA_TYPE_F32,
                  "dtype", DataTypeText(tensor.dtype()));
  if (absl::Status status = checks.Result(); !status.ok()) return status;
  switch (tensor.payload_case()) {
    case v1::Tensor::kData:
    case v1::Tensor::kValues:
      return absl::OkStatus();
    case v1::Tensor::kSharedMemory:
      return NotImplementedError(checks.Path("shared_memory"), "shared memory");
    case v1::Tensor::PAYLOAD_NOT_SET:
      return FieldError(std::string(in.field), "data, values or shared_memory",
                        "no payload");
  }
  return absl::InternalError("a payload case that the switch lacks");
}

TensorSpec SpecOf(const v1::Tensor& tensor) {
  return {.dtype = DataType::kF32,
          .shape = {tensor.shape().begin(), tensor.shape().end()}};
}

// The core calls tensors query, key and value; the request may not.
absl::Status Renamed(const absl::Status& status,
                     const AttentionTensors& tensors) {
  const std::optional<std::string> field = FieldOf(status);
  if (!field) return status;
  const absl::string_view path = *field;
  const absl::string_view root = path.substr(0, path.find_first_of(".["));
  const std::pair<absl::string_view, absl::string_view> names[] = {
      {"query", tensors.query.field},
      {"key", tensors.key.field},
      {"value", tensors.value.field}};
  for (const auto& [core_name, name] : names) {
    if (root != core_name) continue;
    return WithField(status, absl::StrCat(name, path.substr(root.size())));
  }
  return status;
}

absl::Status CheckPayloadSize(const NamedTensor& in, int64_t expected_bytes,
                              const SplitMessage& split) {
  const v1::Tensor& tensor = *in.tensor;
  const std::string shape =
      absl::StrCat(" for shape [", absl::StrJoin(tensor.shape(), ", "), "]");
  if (tensor.payload_case() == v1::Tensor::kValues) {
    const int64_t expected =
        expected_bytes / static_cast<int64_t>(sizeof(float));
    const int64_t got = tensor.values().values_size();
    if (got == expected) return absl::OkStatus();
    return FieldError(absl::StrCat(in.field, ".values"),
                      absl::StrCat(expected, " numbers", shape),
                      absl::StrCat(got, " numbers"));
  }
  const int64_t got = PayloadOf(split, tensor.data()).size_bytes;
  if (got == expected_bytes) return absl::OkStatus();
  return FieldError(absl::StrCat(in.field, ".data"),
                    absl::StrCat(expected_bytes, " bytes", shape, " of F32"),
                    absl::StrCat(got, " bytes"));
}

template <typename Request>
const v1::AttentionOptions* OptionsOf(const Request& request) {
  return &request.options();  // the default instance where unset
}

}  // namespace

absl::StatusOr<AttentionOptions> DecodeOptions(const v1::AttentionOptions& in,
                                               absl::string_view path) {
  Checks checks(path);
  AttentionOptions out;
  if (in.has_scale()) out.scale = in.scale();
  if (in.has_temperature()) out.temperature = in.temperature();
  out.block_size = in.block_size();
  out.return_lse = in.return_lse();
  switch (in.causal()) {
    case v1::CAUSAL_UNSPECIFIED:
      break;
    case v1::CAUSAL_TOP_LEFT:
      out.causal = Causal::kTopLeft;
      break;
    case v1::CAUSAL_BOTTOM_RIGHT:
      out.causal = Causal::kBottomRight;
      break;
    default:
      checks.Require(
          false, "causal", "CAUSAL_TOP_LEFT or CAUSAL_BOTTOM_RIGHT",
          absl::StrCat("unknown value ", static_cast<int>(in.causal())));
  }
  CheckTypes(in, checks);
  CheckPositions(in, checks);
  CheckScores(in, checks);
  CheckLengths(in.query_lengths(), "query_lengths", "lengths", checks);
  CheckLengths(in.key_lengths(), "key_lengths", "lengths", checks);
  CheckLengths(in.cu_seqlens_q(), "cu_seqlens_q", "a ragged batch", checks);
  CheckLengths(in.cu_seqlens_k(), "cu_seqlens_k", "a ragged batch", checks);
  if (absl::Status status = checks.Result(); !status.ok()) return status;
  return out;
}

absl::Status CheckProblemType(v1::DataType type) {
  if (type == v1::DATA_TYPE_UNSPECIFIED || type == v1::DATA_TYPE_F32) {
    return absl::OkStatus();
  }
  if (KnownFloatType(type)) {
    return NotImplementedError("dtype", v1::DataType_Name(type));
  }
  return FieldError("dtype", "F32, F16 or BF16", DataTypeText(type));
}

AttentionTensors AttentionTensors::Of(const v1::AttentionRequest& request) {
  return {{"query", request.has_query() ? &request.query() : nullptr},
          {"key", request.has_key() ? &request.key() : nullptr},
          {"value", request.has_value() ? &request.value() : nullptr},
          OptionsOf(request)};
}

AttentionTensors AttentionTensors::Of(const v1::SelfAttentionRequest& request) {
  const NamedTensor sequence{
      "sequence", request.has_sequence() ? &request.sequence() : nullptr};
  return {sequence, sequence, sequence, OptionsOf(request)};
}

AttentionTensors AttentionTensors::Of(
    const v1::CrossAttentionRequest& request) {
  const NamedTensor kv{"kv_sequence", request.has_kv_sequence()
                                          ? &request.kv_sequence()
                                          : nullptr};
  return {{"queries", request.has_queries() ? &request.queries() : nullptr},
          kv,
          kv,
          OptionsOf(request)};
}

absl::StatusOr<DecodedRequest> DecodeRequest(const AttentionTensors& tensors,
                                             const SplitMessage& split) {
  // What this file finds wrong in any field comes before an UNIMPLEMENTED, so
  // that a client fixes its mistakes first. What the core checks (shapes,
  // scale, temperature, block_size) and the byte counts come after it: a
  // problem with unserved options cannot be made.
  absl::Status unserved;
  for (const NamedTensor* tensor :
       {&tensors.query, &tensors.key, &tensors.value}) {
    absl::Status status = CheckTensor(*tensor);
    if (status.ok()) continue;
    if (!absl::IsUnimplemented(status)) return status;
    if (unserved.ok()) unserved = std::move(status);
  }
  absl::StatusOr<AttentionOptions> options =
      DecodeOptions(*tensors.options, "options");
  if (!options.ok() && !absl::IsUnimplemented(options.status())) {
    return options.status();
  }
  if (!unserved.ok()) return unserved;
  if (!options.ok()) return options.status();

  absl::StatusOr<AttentionProblem> problem = AttentionProblem::Create(
      SpecOf(*tensors.query.tensor), SpecOf(*tensors.key.tensor),
      SpecOf(*tensors.value.tensor), *options);
  if (!problem.ok()) return Renamed(problem.status(), tensors);
  const std::pair<const NamedTensor*, int64_t> sizes[] = {
      {&tensors.query, problem->query_bytes()},
      {&tensors.key, problem->key_bytes()},
      {&tensors.value, problem->value_bytes()}};
  for (const auto& [tensor, bytes] : sizes) {
    if (absl::Status status = CheckPayloadSize(*tensor, bytes, split);
        !status.ok()) {
      return status;
    }
  }
  const bool values =
      tensors.query.tensor->payload_case() == v1::Tensor::kValues;
  return DecodedRequest{*std::move(problem),
                        values ? PayloadKind::kValues : PayloadKind::kData};
}

void CopyElements(const v1::Tensor& tensor, const SplitMessage& split,
                  const ReceivedMessage& received, std::byte* to) {
  if (tensor.payload_case() == v1::Tensor::kValues) {
    const auto& values = tensor.values().values();
    if (values.empty()) return;
    std::memcpy(to, values.data(),
                static_cast<size_t>(values.size()) * sizeof(float));
    return;
  }
  received.CopyTo(PayloadOf(split, tensor.data()), to);
}

}  // namespace attnd::server
