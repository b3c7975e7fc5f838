#include "client/message_codec.h"

#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/error_details.h"

namespace attnd::client {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensors travel as the bytes of little-endian floats");

absl::Duration DecodeDuration(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

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
  proto->Assign(list.begin(), list.end());
}

// Type and shape.
void DescribeTensor(const ConstTensor& tensor, v1::Tensor* proto) {
  proto->set_dtype(EncodeType(tensor.data.type()));
  EncodeList(tensor.shape, proto->mutable_shape());
}

// Everything but the elements of bias and mask.
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
  if (options.bias) DescribeTensor(*options.bias, proto->mutable_bias());
  if (options.mask) DescribeTensor(*options.mask, proto->mutable_mask());
  EncodeList(options.query_lengths, proto->mutable_query_lengths());
  EncodeList(options.key_lengths, proto->mutable_key_lengths());
  EncodeList(options.cu_seqlens_q, proto->mutable_cu_seqlens_q());
  EncodeList(options.cu_seqlens_k, proto->mutable_cu_seqlens_k());
  proto->set_precision(EncodePrecision(options.precision));
}

void EncodeData(const ConstElements& elements, v1::Tensor* proto) {
  if (elements.place()) {
    EncodePlace(*elements.place(), proto->mutable_shared_memory());
    return;
  }
  std::string* data = proto->mutable_data();
  if (elements.bytes().empty()) return;
  data->assign(reinterpret_cast<const char*>(elements.bytes().data()),
               elements.bytes().size());
}

// What the server wrote is there already, and as long as was asked for.
absl::Status CheckShared(const v1::Tensor& proto, absl::string_view name,
                         const Elements& target) {
  const std::vector<int64_t> shape(proto.shape().begin(), proto.shape().end());
  const auto count = ElementCount(shape);
  const SharedPlace place = {
      .handle = proto.shared_memory().handle(),
      .offset_bytes = proto.shared_memory().offset_bytes()};
  if (proto.has_shared_memory() && place == *target.place() && count &&
      proto.dtype() == EncodeType(target.type()) &&
      static_cast<uint64_t>(*count) *
              static_cast<uint64_t>(SizeOf(target.type())) ==
          target.bytes().size()) {
    return absl::OkStatus();
  }
  return ReasonError(
      absl::StatusCode::kInternal, "BAD_RESPONSE",
      absl::StrCat(name, ": the server did not answer where it was asked to"));
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

void EncodeTensor(const ConstTensor& tensor, v1::Tensor* proto) {
  DescribeTensor(tensor, proto);
  EncodeData(tensor.data, proto);
}

void EncodeOptions(const AttentionOptions& options,
                   v1::AttentionOptions* proto) {
  DescribeOptions(options, proto);
  if (options.bias) EncodeData(options.bias->data, proto->mutable_bias());
  if (options.mask) EncodeData(options.mask->data, proto->mutable_mask());
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
  attention.set_return_lse(options.return_lse);
  if (options.output_dtype) {
    attention.set_output_dtype(EncodeType(*options.output_dtype));
  }
  return proto;
}

absl::Status DecodeTensor(const v1::Tensor& proto, absl::string_view name,
                          const Elements& target) {
  if (target.place()) return CheckShared(proto, name, target);
  const std::vector<int64_t> shape(proto.shape().begin(), proto.shape().end());
  const std::string described =
      absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
  const auto count = ElementCount(shape);
  const auto element_bytes = static_cast<uint64_t>(SizeOf(target.type()));
  const uint64_t size_bytes = proto.data().size();
  if (proto.dtype() != EncodeType(target.type()) || !proto.has_data() ||
      !count || static_cast<uint64_t>(*count) != size_bytes / element_bytes ||
      size_bytes % element_bytes != 0) {
    return ReasonError(
        absl::StatusCode::kInternal, "BAD_RESPONSE",
        absl::StrCat(name, ": the server answered ", size_bytes,
                     " bytes of dtype ", static_cast<int>(proto.dtype()),
                     " for shape ", described));
  }
  if (target.bytes().size() != size_bytes) {
    return FieldError(
        name,
        absl::StrCat("room for ", *count, " elements for an answer of shape ",
                     described),
        absl::StrCat("room for ", target.bytes().size() / element_bytes));
  }
  if (size_bytes > 0) {
    std::memcpy(target.bytes().data(), proto.data().data(), size_bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<ExecutionStats> DecodeReply(
    const v1::AttentionBackwardResponse& response,
    const BackwardOutputs& outputs) {
  absl::Status status =
      DecodeTensor(response.grad_query(), "grad_query", outputs.grad_query);
  status.Update(
      DecodeTensor(response.grad_key(), "grad_key", outputs.grad_key));
  status.Update(
      DecodeTensor(response.grad_value(), "grad_value", outputs.grad_value));
  if (!status.ok()) return status;
  return DecodeStats(response.stats());
}

BenchmarkResult DecodeBenchmark(const v1::BenchmarkResult& proto) {
  BenchmarkResult result;
  if (proto.has_naive_time_ms()) result.naive_time_ms = proto.naive_time_ms();
  if (proto.has_speedup()) result.speedup = proto.speedup();
  result.flash_time_ms = proto.flash_time_ms();
  result.memory_reduction = proto.memory_reduction();
  result.num_queries = proto.num_queries();
  result.dimensions = proto.dimensions();
  result.max_abs_error = proto.max_abs_error();
  result.max_rel_error = proto.max_rel_error();
  result.gflops = proto.gflops();
  result.peak_gflops = proto.peak_gflops();
  result.peak_ratio = proto.peak_ratio();
  result.naive_peak_bytes = proto.naive_peak_bytes();
  result.flash_peak_bytes = proto.flash_peak_bytes();
  result.stats = DecodeStats(proto.stats());
  return result;
}

MemoryEstimate DecodeEstimate(const v1::MemoryEstimateResponse& proto) {
  MemoryEstimate estimate;
  estimate.naive_bytes = proto.naive_bytes();
  estimate.flash_bytes = proto.flash_bytes();
  estimate.reduction_ratio = proto.reduction_ratio();
  estimate.input_bytes = proto.input_bytes();
  estimate.output_bytes = proto.output_bytes();
  estimate.workspace_bytes = proto.workspace_bytes();
  estimate.wire_bytes = proto.wire_bytes();
  estimate.peak_per_request_bytes = proto.peak_per_request_bytes();
  estimate.peak_bytes = proto.peak_bytes();
  estimate.required_message_bytes = proto.required_message_bytes();
  estimate.flops = proto.flops();
  estimate.fits = proto.fits();
  estimate.limiting_factor = proto.limiting_factor();
  return estimate;
}

ServerInfo DecodeServerInfo(const v1::GetServerInfoResponse& proto) {
  ServerInfo info;
  info.version = proto.version();
  info.isa = proto.isa();
  info.threads = proto.threads();
  info.max_receive_message_bytes = proto.max_receive_message_bytes();
  info.max_send_message_bytes = proto.max_send_message_bytes();
  info.memory_budget_bytes = proto.memory_budget_bytes();
  info.max_benchmark_vectors = proto.max_benchmark_vectors();
  info.features.assign(proto.features().begin(), proto.features().end());
  return info;
}

ExecutionStats DecodeStats(const v1::ExecutionStats& proto) {
  ExecutionStats stats;
  stats.isa = proto.isa();
  stats.kernel = proto.kernel();
  stats.tile_q = proto.tile_q();
  stats.tile_kv = proto.tile_kv();
  stats.threads = proto.threads();
  stats.queue_time = DecodeDuration(proto.queue_time());
  stats.compute_time = DecodeDuration(proto.compute_time());
  stats.flops = proto.flops();
  stats.workspace_bytes = proto.workspace_bytes();
  return stats;
}

}  // namespace attnd::client
