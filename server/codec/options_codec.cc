#include "server/codec/options_codec.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/attention_problem.h"
#include "core/field_error.h"

namespace attnd::server {
namespace {

using google::protobuf::RepeatedField;

constexpr char kFloatTypes[] = "F32, F16 or BF16";

// No list needs more: one number a batch entry, and one offset more.
constexpr int kMaxListed =
    static_cast<int>(AttentionProblem::kMaxListedEntries) + 1;

std::string OptionPath(absl::string_view field) {
  return absl::StrCat("options.", field);
}

std::string WireTypeText(v1::DataType type) {
  const std::string& name = v1::DataType_Name(type);
  return name.empty() ? absl::StrCat("unknown value ", static_cast<int>(type))
                      : name;
}

std::optional<DataType> FloatType(v1::DataType type) {
  switch (type) {
    case v1::DATA_TYPE_F32:
      return DataType::kF32;
    case v1::DATA_TYPE_F16:
      return DataType::kF16;
    case v1::DATA_TYPE_BF16:
      return DataType::kBF16;
    default:
      return std::nullopt;
  }
}

absl::Status UnknownValue(absl::string_view field, const char* expected,
                          int value) {
  return FieldError(OptionPath(field), expected,
                    absl::StrCat("unknown value ", value));
}

// Long lists are refused before they are copied.
template <typename T>
absl::Status DecodeList(const RepeatedField<T>& in, absl::string_view parent,
                        absl::string_view field, std::vector<T>& out) {
  if (in.size() > kMaxListed) {
    return FieldError(absl::StrCat(parent, ".", field),
                      absl::StrCat("at most ", kMaxListed, " numbers"),
                      absl::StrCat(in.size()));
  }
  out.assign(in.begin(), in.end());
  return absl::OkStatus();
}

absl::Status DecodeEnums(const v1::AttentionOptions& in,
                         AttentionOptions& out) {
  switch (in.layout()) {
    case v1::LAYOUT_UNSPECIFIED:
    case v1::LAYOUT_BHSD:
      break;
    case v1::LAYOUT_BSHD:
      out.layout = Layout::kBshd;
      break;
    default:
      return UnknownValue("layout", "LAYOUT_BHSD or LAYOUT_BSHD", in.layout());
  }
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
      return UnknownValue("causal", "CAUSAL_TOP_LEFT or CAUSAL_BOTTOM_RIGHT",
                          in.causal());
  }
  switch (in.precision()) {
    case v1::PRECISION_UNSPECIFIED:
    case v1::PRECISION_AUTO:
      break;
    case v1::PRECISION_F32:
      out.precision = Precision::kF32;
      break;
    case v1::PRECISION_BF16:
      out.precision = Precision::kBF16;
      break;
    default:
      return UnknownValue("precision",
                          "PRECISION_AUTO, PRECISION_F32 or PRECISION_BF16",
                          in.precision());
  }
  if (in.output_dtype() == v1::DATA_TYPE_UNSPECIFIED) return absl::OkStatus();
  out.output_dtype = FloatType(in.output_dtype());
  if (out.output_dtype) return absl::OkStatus();
  return FieldError(OptionPath("output_dtype"), kFloatTypes,
                    WireTypeText(in.output_dtype()));
}

absl::Status DecodeLists(const v1::AttentionOptions& in,
                         AttentionOptions& out) {
  absl::Status status;
  const auto decode = [&status](const auto& list, absl::string_view field,
                                auto& to) {
    if (!list.empty()) status.Update(DecodeList(list, "options", field, to));
  };
  decode(in.query_offsets(), "query_offsets", out.query_offsets);
  decode(in.alibi_slopes(), "alibi_slopes", out.alibi_slopes);
  decode(in.sink_logits(), "sink_logits", out.sink_logits);
  decode(in.query_lengths(), "query_lengths", out.query_lengths);
  decode(in.key_lengths(), "key_lengths", out.key_lengths);
  decode(in.cu_seqlens_q(), "cu_seqlens_q", out.cu_seqlens_q);
  decode(in.cu_seqlens_k(), "cu_seqlens_k", out.cu_seqlens_k);
  return status;
}

absl::Status DecodeTensors(const v1::AttentionOptions& in,
                           AttentionOptions& out) {
  if (in.has_bias()) {
    absl::StatusOr<TensorSpec> bias = DecodeSpec(in.bias(), OptionPath("bias"));
    if (!bias.ok()) return bias.status();
    out.bias = *std::move(bias);
  }
  if (!in.has_mask()) return absl::OkStatus();
  if (in.mask().dtype() != v1::DATA_TYPE_BOOL) {
    return FieldError(OptionPath("mask.dtype"), "BOOL",
                      WireTypeText(in.mask().dtype()));
  }
  return DecodeList(in.mask().shape(), "options.mask", "shape",
                    out.mask_shape.emplace());
}

}  // namespace

absl::string_view TypeName(DataType type) {
  switch (type) {
    case DataType::kF32:
      return "F32";
    case DataType::kF16:
      return "F16";
    case DataType::kBF16:
      return "BF16";
  }
  return "?";
}

absl::StatusOr<TensorSpec> DecodeSpec(const v1::Tensor& tensor,
                                      absl::string_view path) {
  TensorSpec spec;
  if (tensor.payload_case() == v1::Tensor::kValues) {
    if (tensor.dtype() != v1::DATA_TYPE_UNSPECIFIED &&
        tensor.dtype() != v1::DATA_TYPE_F32) {
      return FieldError(absl::StrCat(path, ".dtype"), "F32 beside values",
                        WireTypeText(tensor.dtype()));
    }
  } else if (const auto type = FloatType(tensor.dtype())) {
    spec.dtype = *type;
  } else {
    return FieldError(absl::StrCat(path, ".dtype"), kFloatTypes,
                      WireTypeText(tensor.dtype()));
  }
  if (absl::Status status =
          DecodeList(tensor.shape(), path, "shape", spec.shape);
      !status.ok()) {
    return status;
  }
  return spec;
}

absl::StatusOr<DataType> DecodeProblemType(v1::DataType type) {
  if (type == v1::DATA_TYPE_UNSPECIFIED) return DataType::kF32;
  if (const auto known = FloatType(type)) return *known;
  return FieldError("dtype", kFloatTypes, WireTypeText(type));
}

absl::StatusOr<AttentionOptions> DecodeOptions(const v1::AttentionOptions& in) {
  AttentionOptions out;
  if (in.has_scale()) out.scale = in.scale();
  if (in.has_temperature()) out.temperature = in.temperature();
  out.block_size = in.block_size();
  if (in.has_window_left()) out.window_left = in.window_left();
  if (in.has_window_right()) out.window_right = in.window_right();
  if (in.has_logits_soft_cap()) out.logits_soft_cap = in.logits_soft_cap();
  out.return_lse = in.return_lse();
  absl::Status status = DecodeEnums(in, out);
  if (status.ok()) status = DecodeLists(in, out);
  if (status.ok()) status = DecodeTensors(in, out);
  if (!status.ok()) return status;
  return out;
}

int64_t DecodedListBytes(const v1::AttentionOptions& options) {
  int64_t numbers = 0;
  for (const int size :
       {options.query_offsets_size(), options.alibi_slopes_size(),
        options.sink_logits_size(), options.query_lengths_size(),
        options.key_lengths_size(), options.cu_seqlens_q_size(),
        options.cu_seqlens_k_size(), options.bias().shape_size(),
        options.mask().shape_size()}) {
    numbers += std::min(size, kMaxListed);
  }
  return numbers * int64_t{sizeof(int64_t)};
}

}  // namespace attnd::server
