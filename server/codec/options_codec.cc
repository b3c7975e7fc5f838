#include "server/codec/options_codec.h"

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "core/attention_problem.h"

namespace attnd::server {
namespace {

using google::protobuf::RepeatedField;

constexpr char kFloatTypes[] = "F32, F16 or BF16";

// No list needs more numbers than this: one for each batch entry, and one more
// offset.
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
    case v1::DATA_TYPE_F16:
    case v1::DATA_TYPE_BF16:
      return static_cast<DataType>(type);
    default:
      return std::nullopt;
  }
}

// Returns an error if a list is too long. Call it before the list is copied.
absl::Status CheckListed(int size, absl::string_view parent,
                         absl::string_view field) {
  if (size <= kMaxListed) return absl::OkStatus();
  return FieldError(absl::StrCat(parent, field),
                    absl::StrCat("at most ", kMaxListed, " numbers"),
                    absl::StrCat(size));
}

// Returns the valid values of an option, such as "LAYOUT_BHSD or LAYOUT_BSHD".
template <typename Enum>
std::string ValuesText(absl::string_view field) {
  const std::string prefix = absl::StrCat(absl::AsciiStrToUpper(field), "_");
  std::vector<std::string> names;
  for (const auto& [value, name] : kNamedValues<Enum>) {
    if (static_cast<int>(value) != 0) {
      names.push_back(absl::StrCat(prefix, name));
    }
  }
  const std::string last = names.back();
  names.pop_back();
  return absl::StrCat(absl::StrJoin(names, ", "), " or ", last);
}

// Decodes the field `name` of the options to `to`. There is an overload for
// each kind of option.
template <typename Number>
absl::Status Decode(absl::string_view, Number number, Number& to) {
  to = number;
  return absl::OkStatus();
}

template <typename Number>
absl::Status Decode(absl::string_view, Number number,
                    std::optional<Number>& to) {
  to = number;
  return absl::OkStatus();
}

template <typename WireEnum, typename Enum>
absl::Status Decode(absl::string_view name, WireEnum number,
                    Enum& to) requires(std::is_enum_v<Enum>) {
  if (number == 0) return absl::OkStatus();  // the default
  for (const auto& named : kNamedValues<Enum>) {
    if (static_cast<int>(named.value) != static_cast<int>(number)) continue;
    to = named.value;
    return absl::OkStatus();
  }
  return FieldError(OptionPath(name), ValuesText<Enum>(name),
                    absl::StrCat("unknown value ", static_cast<int>(number)));
}

template <typename Number>
absl::Status Decode(absl::string_view name, const RepeatedField<Number>& list,
                    std::vector<Number>& to) {
  if (list.empty()) return absl::OkStatus();
  ATTND_RETURN_IF_ERROR(CheckListed(list.size(), "options.", name));
  to.assign(list.begin(), list.end());
  return absl::OkStatus();
}

// Does nothing, because DecodeTensors decodes bias and mask.
absl::Status Decode(absl::string_view, const v1::Tensor&,
                    std::optional<TensorSpec>&) {
  return absl::OkStatus();
}

// Returns how many numbers a field lists.
template <typename Field>
int Listed(const Field&) {
  return 0;
}
template <typename Number>
int Listed(const RepeatedField<Number>& list) {
  return list.size();
}
int Listed(const v1::Tensor& tensor) { return tensor.shape_size(); }

absl::Status DecodeTensors(const v1::AttentionOptions& in,
                           AttentionOptions& out) {
  if (in.has_bias()) {
    ATTND_ASSIGN_OR_RETURN(out.bias, DecodeSpec(in.bias(), OptionPath("bias")));
  }
  if (!in.has_mask()) return absl::OkStatus();
  const v1::Tensor& mask = in.mask();
  if (mask.dtype() != v1::DATA_TYPE_BOOL) {
    return FieldError(OptionPath("mask.dtype"), "BOOL",
                      WireTypeText(mask.dtype()));
  }
  ATTND_RETURN_IF_ERROR(
      CheckListed(mask.shape_size(), "options.mask", ".shape"));
  out.mask =
      TensorSpec{DataType::kBool, {mask.shape().begin(), mask.shape().end()}};
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TensorSpec> DecodeSpec(const v1::Tensor& tensor,
                                      absl::string_view path) {
  TensorSpec spec;
  if (tensor.payload_case() == v1::Tensor::kValues) {
    if (tensor.dtype() != v1::DATA_TYPE_UNSPECIFIED &&
        tensor.dtype() != v1::DATA_TYPE_F32) {
      return FieldError(absl::StrCat(path, ".dtype"),
                        "F32 because values are always F32",
                        WireTypeText(tensor.dtype()));
    }
  } else if (const auto type = FloatType(tensor.dtype())) {
    spec.dtype = *type;
  } else {
    return FieldError(absl::StrCat(path, ".dtype"), kFloatTypes,
                      WireTypeText(tensor.dtype()));
  }
  ATTND_RETURN_IF_ERROR(CheckListed(tensor.shape_size(), path, ".shape"));
  spec.shape.assign(tensor.shape().begin(), tensor.shape().end());
  return spec;
}

absl::StatusOr<DataType> DecodeProblemType(v1::DataType type) {
  if (type == v1::DATA_TYPE_UNSPECIFIED) return DataType::kF32;
  if (const auto known = FloatType(type)) return *known;
  return FieldError("dtype", kFloatTypes, WireTypeText(type));
}

absl::StatusOr<DecodedOptions> DecodeOptions(const v1::AttentionOptions& in) {
  DecodedOptions out;
  absl::Status status;
#define ATTND_OPTION(type, name, ...)                         \
  [&](const auto& message) {                                  \
    if constexpr (requires { message.has_##name(); }) {       \
      if (!message.has_##name()) return;                      \
    }                                                         \
    if (!status.ok()) return;                                 \
    status = Decode(#name, message.name(), out.options.name); \
  }(in);
#include "base/attention_options.def"
  out.outputs.return_lse = in.return_lse();
  if (in.output_dtype() != v1::DATA_TYPE_UNSPECIFIED) {
    out.outputs.output_dtype = FloatType(in.output_dtype());
    if (!out.outputs.output_dtype) {
      status.Update(FieldError(OptionPath("output_dtype"), kFloatTypes,
                               WireTypeText(in.output_dtype())));
    }
  }
  ATTND_RETURN_IF_ERROR(status);
  ATTND_RETURN_IF_ERROR(DecodeTensors(in, out.options));
  return out;
}

int64_t DecodedListBytes(const v1::AttentionOptions& options) {
  int64_t numbers = 0;
#define ATTND_OPTION(type, name, ...) \
  numbers += std::min(Listed(options.name()), kMaxListed);
#include "base/attention_options.def"
  return numbers * int64_t{sizeof(int64_t)};
}

}  // namespace attnd::server
