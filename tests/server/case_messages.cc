#include "tests/server/case_messages.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "base/attention_options.h"

namespace attnd::server {
namespace {

using testing::AttentionCase;
using testing::CaseShape;
using testing::CaseSpecs;
using testing::GradientCase;
using testing::TypedArray;

v1::DataType TypeOf(DataType type) { return static_cast<v1::DataType>(type); }

void Describe(v1::DataType type, const std::vector<int64_t>& shape,
              v1::Tensor& tensor) {
  tensor.set_dtype(type);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
}

v1::Tensor TensorOf(const TensorSpec& spec, const void* data, size_t size) {
  v1::Tensor tensor;
  Describe(TypeOf(spec.dtype), spec.shape, tensor);
  tensor.set_data(data, size);
  return tensor;
}

v1::Tensor TensorOf(const TensorSpec& spec, const TypedArray& elements) {
  return TensorOf(spec, elements.data(),
                  static_cast<size_t>(elements.size() * SizeOf(spec.dtype)));
}

v1::Tensor TensorOf(const std::vector<int64_t>& shape,
                    const std::vector<float>& elements) {
  return TensorOf({.dtype = DataType::kF32, .shape = shape}, elements.data(),
                  elements.size() * sizeof(float));
}

template <typename T, typename Field>
void Copy(const std::vector<T>& from, Field* to) {
  to->Add(from.begin(), from.end());
}

// Append one option in protobuf's text format, which tests the codec of the
// server by other means than its own.
void AppendField(const char* name, float x, std::string& text) {
  absl::StrAppendFormat(&text, "%s: %.9g\n", name, x);
}
void AppendField(const char* name, int64_t x, std::string& text) {
  absl::StrAppendFormat(&text, "%s: %d\n", name, x);
}
template <typename Enum>
void AppendField(const char* name, Enum x, std::string& text) {
  if (static_cast<int>(x) == 0) return;
  absl::StrAppendFormat(&text, "%s: %s_%s\n", name, absl::AsciiStrToUpper(name),
                        NameOf(x));
}
template <typename T>
void AppendField(const char* name, const std::vector<T>& list,
                 std::string& text) {
  for (const T x : list) AppendField(name, x, text);
}
template <typename T>
void AppendField(const char* name, const std::optional<T>& x,
                 std::string& text) {
  if constexpr (!std::is_same_v<T, TensorSpec>) {
    if (x) AppendField(name, *x, text);
  }
}

v1::AttentionOptions FilledOptionsOf(const AttentionCase& test) {
  v1::AttentionOptions options = OptionsOf(test.shape());
  if (options.has_bias()) {
    options.mutable_bias()->set_data(
        test.bias.data(),
        static_cast<size_t>(test.bias.size() * SizeOf(test.bias.type())));
  }
  if (options.has_mask()) {
    options.mutable_mask()->set_data(test.mask.data(), test.mask.size());
  }
  return options;
}

}  // namespace

v1::AttentionOptions OptionsOf(const CaseShape& shape) {
  const AttentionOptions& in = shape.options;
  v1::AttentionOptions out;
  std::string text;
  ForEachOption([&](const char* name, auto member, const auto&...) {
    AppendField(name, member(in), text);
  });
  // Fails if the table of options has an option that the contract lacks.
  if (!google::protobuf::TextFormat::ParseFromString(text, &out)) std::abort();
  if (in.bias) {
    Describe(TypeOf(in.bias->dtype), in.bias->shape, *out.mutable_bias());
  }
  if (in.mask) {
    Describe(v1::DATA_TYPE_BOOL, in.mask->shape, *out.mutable_mask());
  }
  out.set_return_lse(shape.outputs.return_lse);
  if (const auto type = shape.outputs.output_dtype) {
    out.set_output_dtype(TypeOf(*type));
  }
  return out;
}

v1::AttentionRequest RequestOf(const AttentionCase& test) {
  const CaseSpecs specs = SpecsOf(test.shape());
  v1::AttentionRequest request;
  *request.mutable_query() = TensorOf(specs.query, test.query);
  *request.mutable_key() = TensorOf(specs.key, test.key);
  *request.mutable_value() = TensorOf(specs.value, test.value);
  *request.mutable_options() = FilledOptionsOf(test);
  return request;
}

v1::SelfAttentionRequest SelfRequestOf(const AttentionCase& test) {
  v1::SelfAttentionRequest request;
  *request.mutable_sequence() =
      TensorOf(SpecsOf(test.shape()).query, test.query);
  *request.mutable_options() = FilledOptionsOf(test);
  return request;
}

v1::CrossAttentionRequest CrossRequestOf(const AttentionCase& test) {
  const CaseSpecs specs = SpecsOf(test.shape());
  v1::CrossAttentionRequest request;
  *request.mutable_queries() = TensorOf(specs.query, test.query);
  *request.mutable_kv_sequence() = TensorOf(specs.key, test.key);
  *request.mutable_options() = FilledOptionsOf(test);
  return request;
}

v1::AttentionBackwardRequest BackwardRequestOf(const GradientCase& test) {
  const v1::AttentionRequest forward = RequestOf(test.forward);
  const AttentionProblem& problem = test.forward.problem();
  v1::AttentionBackwardRequest request;
  *request.mutable_query() = forward.query();
  *request.mutable_key() = forward.key();
  *request.mutable_value() = forward.value();
  *request.mutable_options() = forward.options();
  *request.mutable_output() =
      TensorOf({.dtype = DataType::kF32, .shape = problem.OutputShape()},
               test.forward.output);
  *request.mutable_lse() = TensorOf(problem.LseShape(), test.forward.lse);
  *request.mutable_grad_output() =
      TensorOf(problem.OutputShape(), test.grad_output);
  return request;
}

v1::MemoryEstimateRequest EstimateRequestOf(const CaseShape& shape) {
  v1::MemoryEstimateRequest request;
  request.set_batch(shape.batch);
  request.set_num_q_heads(shape.num_kv_heads * shape.group);
  request.set_num_kv_heads(shape.num_kv_heads);
  request.set_q_len(shape.q_len);
  request.set_kv_len(shape.kv_len);
  request.set_head_dim(shape.head_dim);
  request.set_v_head_dim(shape.v_head_dim);
  request.set_dtype(TypeOf(shape.query_dtype));
  *request.mutable_options() = OptionsOf(shape);
  return request;
}

void UseValues(v1::Tensor& tensor) {
  const std::string data = tensor.data();
  std::vector<float> elements(data.size() / sizeof(float));
  std::copy_n(data.data(), data.size(),
              reinterpret_cast<char*>(elements.data()));
  Copy(elements, tensor.mutable_values()->mutable_values());
}

std::vector<std::string> StreamOf(v1::AttentionRequest request,
                                  size_t chunk_bytes) {
  std::vector<std::string> chunks;
  const auto take = [&](v1::TensorRole role, v1::Tensor& tensor) {
    const std::string data = tensor.data();
    tensor.clear_payload();
    for (size_t at = 0; at < data.size(); at += chunk_bytes) {
      v1::AttentionStreamRequest message;
      message.mutable_chunk()->set_role(role);
      message.mutable_chunk()->set_offset_bytes(static_cast<int64_t>(at));
      message.mutable_chunk()->set_data(data.substr(at, chunk_bytes));
      chunks.push_back(message.SerializeAsString());
    }
  };
  take(v1::TENSOR_ROLE_QUERY, *request.mutable_query());
  take(v1::TENSOR_ROLE_KEY, *request.mutable_key());
  take(v1::TENSOR_ROLE_VALUE, *request.mutable_value());
  v1::AttentionOptions& options = *request.mutable_options();
  if (options.has_bias()) take(v1::TENSOR_ROLE_BIAS, *options.mutable_bias());
  if (options.has_mask()) take(v1::TENSOR_ROLE_MASK, *options.mutable_mask());
  v1::AttentionStreamRequest header;
  *header.mutable_header() = std::move(request);
  chunks.insert(chunks.begin(), header.SerializeAsString());
  return chunks;
}

absl::StatusOr<v1::AttentionResponse> JoinStream(
    const std::vector<std::string>& messages) {
  v1::AttentionResponse answer;
  bool over = false;
  for (size_t i = 0; i < messages.size(); ++i) {
    v1::AttentionStreamResponse message;
    if (!message.ParseFromString(messages[i])) {
      return absl::DataLossError(
          absl::StrCat("message ", i, " does not parse"));
    }
    if (over || message.has_header() != (i == 0)) {
      return absl::DataLossError(absl::StrCat("message ", i, " is misplaced"));
    }
    if (message.has_header()) {
      answer = message.header();
      answer.mutable_output()->set_data("");
      if (answer.has_lse()) answer.mutable_lse()->set_data("");
    } else if (message.has_chunk()) {
      const v1::TensorChunk& chunk = message.chunk();
      v1::Tensor& tensor = chunk.role() == v1::TENSOR_ROLE_LSE
                               ? *answer.mutable_lse()
                               : *answer.mutable_output();
      if (chunk.offset_bytes() != static_cast<int64_t>(tensor.data().size())) {
        return absl::DataLossError(absl::StrCat("message ", i, " has a gap"));
      }
      tensor.mutable_data()->append(chunk.data());
    } else {
      *answer.mutable_stats() = message.stats();
      over = true;
    }
  }
  if (!over) return absl::DataLossError("the stream has no end");
  return answer;
}

std::string TakeElements(const v1::Tensor& tensor, DataType type,
                         const std::vector<int64_t>& shape, void* to,
                         size_t size_bytes) {
  if (!std::equal(tensor.shape().begin(), tensor.shape().end(), shape.begin(),
                  shape.end())) {
    return absl::StrCat("shape [", absl::StrJoin(tensor.shape(), ", "),
                        "], expected [", absl::StrJoin(shape, ", "), "]");
  }
  if (tensor.dtype() != TypeOf(type)) {
    return absl::StrCat("type ", v1::DataType_Name(tensor.dtype()));
  }
  const auto& numbers = tensor.values().values();
  const absl::string_view elements =
      tensor.has_values()
          ? absl::string_view(
                reinterpret_cast<const char*>(numbers.data()),
                static_cast<size_t>(numbers.size()) * sizeof(float))
          : absl::string_view(tensor.data());
  if (elements.size() != size_bytes) {
    return absl::StrCat(elements.size(), " bytes, expected ", size_bytes);
  }
  if (!elements.empty()) std::memcpy(to, elements.data(), elements.size());
  return "";
}

std::string TakeAnswer(const v1::Tensor& output, const v1::Tensor* lse,
                       AttentionCase& test) {
  test.ClearOutputs();
  const AttentionProblem& problem = test.problem();
  std::string wrong = TakeElements(output, problem.params().output_dtype,
                                   problem.OutputShape(), test.output.data(),
                                   static_cast<size_t>(problem.output_bytes()));
  if (!wrong.empty()) return absl::StrCat("output: ", wrong);
  if ((lse != nullptr) != problem.params().return_lse) return "lse: or none";
  if (lse == nullptr) return "";
  wrong = TakeElements(*lse, DataType::kF32, problem.LseShape(),
                       test.lse.data(), test.lse.size() * sizeof(float));
  return wrong.empty() ? "" : absl::StrCat("lse: ", wrong);
}

}  // namespace attnd::server
