#include "client/request_encoder.h"

#include <bit>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "wire/outgoing_message.h"

namespace attnd::client {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensors travel as the bytes of little-endian floats");

// Encodes the type and the shape of `tensor`.
void DescribeTensor(const ConstTensor& tensor, v1::Tensor* proto) {
  proto->set_dtype(EncodeType(tensor.data.type()));
  proto->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
}

// Encodes an option: calls `set(number, message)` for each number that it has,
// or not at all if it has its default. There is an overload for each kind of
// option.
template <typename Set>
void Encode(int64_t number, v1::AttentionOptions& message, const Set& set) {
  set(number, message);
}

template <typename Number, typename Set>
void Encode(const std::optional<Number>& number, v1::AttentionOptions& message,
            const Set& set) {
  if (number) set(*number, message);
}

template <typename Enum, typename Set>
void Encode(Enum value, v1::AttentionOptions& message,
            const Set& set) requires(std::is_enum_v<Enum>) {
  if (value != kNamedValues<Enum>.front().value) set(value, message);
}

template <typename Number, typename Set>
void Encode(const std::vector<Number>& list, v1::AttentionOptions& message,
            const Set& set) {
  for (const Number number : list) set(number, message);
}

// Does nothing. The callers of DescribeOptions encode tensors, some with and
// some without elements.
template <typename Set>
void Encode(const std::optional<ConstTensor>&, v1::AttentionOptions&,
            const Set&) {}

// Encodes all options except bias and mask.
void DescribeOptions(const AttentionOptions& options,
                     v1::AttentionOptions* proto) {
  // A list has a function add_<name>, and any other option set_<name>.
#define ATTND_OPTION(type, name, ...)                                   \
  Encode(options.name, *proto, [](auto value, auto& message) {          \
    if constexpr (requires { message.add_##name(value); }) {            \
      message.add_##name(value);                                        \
    } else {                                                            \
      message.set_##name(static_cast<decltype(message.name())>(value)); \
    }                                                                   \
  });
#include "base/attention_options.def"
}

}  // namespace

void EncodePlace(const SharedPlace& place, v1::SharedMemory* proto) {
  proto->set_handle(place.handle);
  proto->set_offset_bytes(place.offset_bytes);
}

v1::DataType EncodeType(DataType type) {
  return static_cast<v1::DataType>(type);
}

void AddTensor(int number, const ConstTensor& tensor,
               OutgoingMessage* message) {
  v1::Tensor header;
  DescribeTensor(tensor, &header);
  if (tensor.data.place()) {
    EncodePlace(*tensor.data.place(), header.mutable_shared_memory());
    message->AddField(number, header);
  } else {
    message->AddField(number, header, v1::Tensor::kDataFieldNumber,
                      tensor.data.bytes(), tensor.data.owner());
  }
}

void AddOptions(int number, const AttentionOptions& options,
                v1::AttentionOptions from_outputs, OutgoingMessage* message) {
  DescribeOptions(options, &from_outputs);
  if (!options.bias && !options.mask) {
    message->AddField(number, from_outputs);
    return;
  }
  OutgoingMessage field = OutgoingMessage::Of(from_outputs);
  if (options.bias) {
    AddTensor(v1::AttentionOptions::kBiasFieldNumber, *options.bias, &field);
  }
  if (options.mask) {
    AddTensor(v1::AttentionOptions::kMaskFieldNumber, *options.mask, &field);
  }
  message->AddField(number, std::move(field));
}

v1::AttentionRequest DescribeRequest(const AttentionInputs& inputs,
                                     const AttentionOptions& options,
                                     v1::AttentionOptions from_outputs) {
  v1::AttentionRequest request;
  DescribeTensor(inputs.query, request.mutable_query());
  DescribeTensor(inputs.key, request.mutable_key());
  DescribeTensor(inputs.value, request.mutable_value());
  DescribeOptions(options, &from_outputs);
  if (options.bias) DescribeTensor(*options.bias, from_outputs.mutable_bias());
  if (options.mask) DescribeTensor(*options.mask, from_outputs.mutable_mask());
  *request.mutable_options() = std::move(from_outputs);
  return request;
}

v1::BenchmarkRequest EncodeBenchmark(const BenchmarkOptions& options) {
  v1::BenchmarkRequest proto;
  proto.set_num_vectors(options.num_vectors);
  proto.set_dimensions(options.dimensions);
  proto.set_num_heads(options.num_heads);
  proto.set_dtype(EncodeType(options.dtype));
  proto.set_block_size(options.block_size);
  proto.set_threads(options.threads);
  proto.set_repetitions(options.repetitions);
  return proto;
}

v1::MemoryEstimateRequest EncodeEstimate(const MemoryEstimateOptions& options) {
  v1::MemoryEstimateRequest proto;
  proto.set_seq_len(options.seq_len);
  proto.set_dimensions(options.dimensions);
  proto.set_batch(options.batch);
  proto.set_num_q_heads(options.num_q_heads);
  proto.set_num_kv_heads(options.num_kv_heads);
  proto.set_q_len(options.q_len);
  proto.set_kv_len(options.kv_len);
  proto.set_head_dim(options.head_dim);
  proto.set_v_head_dim(options.v_head_dim);
  proto.set_threads(options.threads);
  proto.set_concurrency(options.concurrency);
  proto.set_dtype(EncodeType(options.dtype));
  proto.set_transport(static_cast<v1::Transport>(options.transport));
  v1::AttentionOptions& attention = *proto.mutable_options();
  DescribeOptions(options.attention, &attention);
  if (const auto& bias = options.attention.bias) {
    DescribeTensor(*bias, attention.mutable_bias());
  }
  if (const auto& mask = options.attention.mask) {
    DescribeTensor(*mask, attention.mutable_mask());
  }
  attention.set_return_lse(options.return_lse);
  if (options.output_dtype) {
    attention.set_output_dtype(EncodeType(*options.output_dtype));
  }
  if (options.goal != EstimateGoal::kEstimate) {
    proto.GetReflection()->SetInt64(&proto,
                                    proto.GetDescriptor()->FindFieldByNumber(
                                        static_cast<int>(options.goal)),
                                    options.budget_bytes);
  }
  return proto;
}

}  // namespace attnd::client
