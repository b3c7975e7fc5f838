#include "client/request_encoder.h"

#include <google/protobuf/reflection.h>

#include <bit>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/attention_options.h"
#include "proto/message_pieces.h"

namespace attnd::client {
namespace {

using google::protobuf::Message;

static_assert(std::endian::native == std::endian::little,
              "tensors travel as the bytes of little-endian floats");

// Writes the type and shape.
void DescribeTensor(const ConstTensor& tensor, v1::Tensor* proto) {
  proto->set_dtype(EncodeType(tensor.data.type()));
  proto->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
}

// Writes one option to a message by protobuf's reflection. An overload for each
// kind of option. Most options of most calls have their default: then the
// message stays as it is, and the field is not even looked up.
class FieldWriter {
 public:
  FieldWriter(const char* name, Message* message)
      : name_(name), message_(message) {}

  void Write(int64_t number) const {
    if (number != 0) Set(number);
  }

  template <typename T>
  void Write(const std::optional<T>& value) const {
    if (value) Set(*value);
  }

  template <typename Enum>
  void Write(Enum value) const requires(std::is_enum_v<Enum>) {
    if (value == kNamedValues<Enum>.front().value) return;  // the default
    reflection().SetEnumValue(message_, field(), static_cast<int>(value));
  }

  template <typename Number>
  void Write(const std::vector<Number>& list) const {
    if (list.empty()) return;
    const auto to =
        reflection().GetMutableRepeatedFieldRef<Number>(message_, field());
    for (const Number number : list) to.Add(number);
  }

 private:
  void Set(int64_t number) const {
    reflection().SetInt64(message_, field(), number);
  }
  void Set(float number) const {
    reflection().SetFloat(message_, field(), number);
  }
  // The callers below write tensors, with or without elements.
  void Set(const ConstTensor&) const {}

  const google::protobuf::FieldDescriptor* field() const {
    return message_->GetDescriptor()->FindFieldByName(name_);
  }
  const google::protobuf::Reflection& reflection() const {
    return *message_->GetReflection();
  }

  const char* name_;
  Message* message_;
};

// Writes all options but bias and mask.
void DescribeOptions(const AttentionOptions& options,
                     v1::AttentionOptions* proto) {
  ForEachOption([&](const char* name, auto member, const auto&...) {
    FieldWriter(name, proto).Write(member(options));
  });
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
  }
  const uint64_t data_bytes = tensor.data.bytes().size();
  const size_t header_bytes = header.ByteSizeLong();
  uint64_t field_bytes = header_bytes;
  if (!tensor.data.place()) {
    field_bytes +=
        PrefixBytes(v1::Tensor::kDataFieldNumber, data_bytes) + data_bytes;
  }
  message->BeginField(number, field_bytes);
  message->Append(header, header_bytes);
  if (!tensor.data.place()) {
    message->AddField(v1::Tensor::kDataFieldNumber, tensor.data);
  }
}

void AddOptions(int number, const AttentionOptions& options,
                v1::AttentionOptions asked, OutgoingMessage* message) {
  DescribeOptions(options, &asked);
  if (!options.bias && !options.mask) return message->AddField(number, asked);
  OutgoingMessage field = OutgoingMessage::Of(asked);
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
                                     v1::AttentionOptions asked) {
  v1::AttentionRequest request;
  DescribeTensor(inputs.query, request.mutable_query());
  DescribeTensor(inputs.key, request.mutable_key());
  DescribeTensor(inputs.value, request.mutable_value());
  DescribeOptions(options, &asked);
  if (options.bias) DescribeTensor(*options.bias, asked.mutable_bias());
  if (options.mask) DescribeTensor(*options.mask, asked.mutable_mask());
  *request.mutable_options() = std::move(asked);
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
  return proto;
}

}  // namespace attnd::client
