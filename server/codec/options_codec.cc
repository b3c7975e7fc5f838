#include "server/codec/options_codec.h"

#include <google/protobuf/reflection.h>

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/attention_options.h"
#include "base/status_macros.h"
#include "core/attention_problem.h"
#include "core/field_error.h"

namespace attnd::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr char kFloatTypes[] = "F32, F16 or BF16";

// No list needs more: one number for each batch entry, and one more offset.
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

// Refuses a long list before it is copied.
absl::Status CheckListed(int size, absl::string_view parent,
                         absl::string_view field) {
  if (size <= kMaxListed) return absl::OkStatus();
  return FieldError(absl::StrCat(parent, field),
                    absl::StrCat("at most ", kMaxListed, " numbers"),
                    absl::StrCat(size));
}

// The values that a request may name: "LAYOUT_BHSD or LAYOUT_BSHD".
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

// Reads one option of the message by protobuf's reflection. An overload for
// each kind of option.
class FieldReader {
 public:
  FieldReader(const Message& message, const FieldDescriptor* field)
      : message_(message),
        reflection_(*message.GetReflection()),
        field_(field) {}

  absl::Status Read(int64_t& to) const {
    to = reflection_.GetInt64(message_, field_);
    return absl::OkStatus();
  }

  absl::Status Read(std::optional<int64_t>& to) const {
    if (has()) to = reflection_.GetInt64(message_, field_);
    return absl::OkStatus();
  }

  absl::Status Read(std::optional<float>& to) const {
    if (has()) to = reflection_.GetFloat(message_, field_);
    return absl::OkStatus();
  }

  template <typename Enum>
  absl::Status Read(Enum& to) const requires(std::is_enum_v<Enum>) {
    const int number = reflection_.GetEnumValue(message_, field_);
    if (number == 0) return absl::OkStatus();  // the default
    for (const auto& named : kNamedValues<Enum>) {
      if (static_cast<int>(named.value) != number) continue;
      to = named.value;
      return absl::OkStatus();
    }
    return FieldError(OptionPath(field_->name()),
                      ValuesText<Enum>(field_->name()),
                      absl::StrCat("unknown value ", number));
  }

  template <typename Number>
  absl::Status Read(std::vector<Number>& to) const {
    const int size = reflection_.FieldSize(message_, field_);
    if (size == 0) return absl::OkStatus();
    ATTND_RETURN_IF_ERROR(CheckListed(size, "options.", field_->name()));
    const auto list = reflection_.GetRepeatedFieldRef<Number>(message_, field_);
    to.assign(list.begin(), list.end());
    return absl::OkStatus();
  }

  // DecodeTensors does bias and mask.
  absl::Status Read(std::optional<TensorSpec>&) const {
    return absl::OkStatus();
  }

 private:
  bool has() const { return reflection_.HasField(message_, field_); }

  const Message& message_;
  const Reflection& reflection_;
  const FieldDescriptor* field_;
};

// Calls `visit(field, member)` for every row of the table of options. The
// fields are looked up by name once.
template <typename Visit>
void ForEachField(const Visit& visit) {
  static const auto* const kFields = [] {
    auto* fields = new std::vector<const FieldDescriptor*>;
    ForEachOption([&](const char* name, const auto&...) {
      fields->push_back(
          v1::AttentionOptions::descriptor()->FindFieldByName(name));
    });
    return fields;
  }();
  auto field = kFields->begin();
  ForEachOption([&](const char*, auto member, const auto&...) {
    visit(*field++, member);
  });
}

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
  ForEachField([&](const FieldDescriptor* field, auto member) {
    if (!status.ok()) return;
    status = FieldReader(in, field).Read(member(out.options));
  });
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
  const auto add = [&numbers](int size) {
    numbers += std::min(size, kMaxListed);
  };
  ForEachField([&](const FieldDescriptor* field, auto) {
    if (!field->is_repeated()) return;
    add(options.GetReflection()->FieldSize(options, field));
  });
  add(options.bias().shape_size());
  add(options.mask().shape_size());
  return numbers * int64_t{sizeof(int64_t)};
}

}  // namespace attnd::server
