#include "client/request_encoder.h"

#include <bit>
#include <optional>
#include <utility>
#include <vector>

#include "proto/message_pieces.h"

namespace attnd::client {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensors travel as the bytes of little-endian floats");

v1::Causal EncodeCausal(Causal causal) {
  switch (causal) {
    case Causal::kNone:
      return v1::CAUSAL_UNSPECIFIED;
    case Causal::kTopLeft:
      return v1::CAUSAL_TOP_LEFT;
    case Causal::kBottomRight:
      return v1::CAUSAL_BOTTOM_RIGHT;
  }
  return v1::CAUSAL_UNSPECIFIED;
}

v1::Transport EncodeTransport(Transport transport) {
  switch (transport) {
    case Transport::kInline:
      return v1::TRANSPORT_INLINE;
    case Transport::kStream:
      return v1::TRANSPORT_STREAM;
    case Transport::kSharedMemory:
      return v1::TRANSPORT_SHARED_MEMORY;
  }
  return v1::TRANSPORT_UNSPECIFIED;
}

v1::Precision EncodePrecision(Precision precision) {
  switch (precision) {
    case Precision::kAuto:
      return v1::PRECISION_UNSPECIFIED;
    case Precision::kF32:
      return v1::PRECISION_F32;
    case Precision::kBF16:
      return v1::PRECISION_BF16;
  }
  return v1::PRECISION_UNSPECIFIED;
}

template <typename T>
void EncodeList(const std::vector<T>& list,
                google::protobuf::RepeatedField<T>* proto) {
  if (!list.empty()) proto->Assign(list.begin(), list.end());
}

// Type and shape.
void DescribeTensor(const ConstTensor& tensor, v1::Tensor* proto) {
  proto->set_dtype(EncodeType(tensor.data.type()));
  EncodeList(tensor.shape, proto->mutable_shape());
}

// Everything but bias and mask.
void DescribeOptions(const AttentionOptions& options,
                     v1::AttentionOptions* proto) {
  if (options.scale) proto->set_scale(*options.scale);
  if (options.temperature) proto->set_temperature(*options.temperature);
  proto->set_block_size(options.block_size);
  if (options.layout == Layout::kBshd) proto->set_layout(v1::LAYOUT_BSHD);
  proto->set_causal(EncodeCausal(options.causal));
  EncodeList(options.query_offsets, proto->mutable_query_offsets());
  if (options.window_left) proto->set_window_left(*options.window_left);
  if (options.window_right) proto->set_window_right(*options.window_right);
  if (options.logits_soft_cap) {
    proto->set_logits_soft_cap(*options.logits_soft_cap);
  }
  EncodeList(options.alibi_slopes, proto->mutable_alibi_slopes());
  EncodeList(options.sink_logits, proto->mutable_sink_logits());
  EncodeList(options.query_lengths, proto->mutable_query_lengths());
  EncodeList(options.key_lengths, proto->mutable_key_lengths());
  EncodeList(options.cu_seqlens_q, proto->mutable_cu_seqlens_q());
  EncodeList(options.cu_seqlens_k, proto->mutable_cu_seqlens_k());
  proto->set_precision(EncodePrecision(options.precision));
}

}  // namespace

void EncodePlace(const SharedPlace& place, v1::SharedMemory* proto) {
  proto->set_handle(place.handle);
  proto->set_offset_bytes(place.offset_bytes);
}

v1::DataType EncodeType(DataType type) {
  switch (type) {
    case DataType::kF32:
      return v1::DATA_TYPE_F32;
    case DataType::kF16:
      return v1::DATA_TYPE_F16;
    case DataType::kBF16:
      return v1::DATA_TYPE_BF16;
    case DataType::kBool:
      return v1::DATA_TYPE_BOOL;
  }
  return v1::DATA_TYPE_UNSPECIFIED;
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
  proto.set_transport(EncodeTransport(options.transport));
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
