#include "client/message_codec.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "client/error_details.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/wire_format_lite.h"
#include "proto/message_pieces.h"

namespace attnd::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;
using google::protobuf::io::ZeroCopyInputStream;

// What protobuf's own parser allows a field.
constexpr uint32_t kMaxLength = std::numeric_limits<int32_t>::max() - 16;

static_assert(std::endian::native == std::endian::little,
              "tensors travel as the bytes of little-endian floats");

absl::Status BadResponse(absl::string_view message) {
  return ReasonError(absl::StatusCode::kInternal, "BAD_RESPONSE", message);
}

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

// A tensor of an answer: what is known of it, and what came.
struct AnswerTensor {
  int field_number;
  absl::string_view name;  // what an error calls it
  Elements target;
  v1::Tensor header = {};  // without its data
  std::optional<uint64_t> data_bytes = {};
};

// Elements that do not fit their target are passed over, and found out later.
bool ReadData(CodedInputStream& in, AnswerTensor& tensor) {
  uint32_t length = 0;
  if (!in.ReadVarint32(&length) ||
      static_cast<int64_t>(length) > in.BytesUntilLimit()) {
    return false;
  }
  tensor.data_bytes = length;
  const std::span<std::byte> room = tensor.target.bytes();
  const auto size = static_cast<int>(length);
  return length == room.size() ? in.ReadRaw(room.data(), size) : in.Skip(size);
}

// The field as it is written by default, which a server does.
bool ReadShape(CodedInputStream& in, v1::Tensor& header) {
  return WireFormatLite::ReadPackedPrimitive<int64_t,
                                             WireFormatLite::TYPE_INT64>(
      &in, header.mutable_shape());
}

bool ReadTensor(CodedInputStream& in, AnswerTensor& tensor) {
  const auto tag_of = [](int number, WireFormatLite::WireType type) {
    return WireFormatLite::MakeTag(number, type);
  };
  std::string rest;
  while (const uint32_t tag = in.ReadTag()) {
    bool good = false;
    uint32_t type = 0;
    if (tag == tag_of(v1::Tensor::kDataFieldNumber,
                      WireFormatLite::WIRETYPE_LENGTH_DELIMITED)) {
      good = ReadData(in, tensor);
    } else if (tag == tag_of(v1::Tensor::kDtypeFieldNumber,
                             WireFormatLite::WIRETYPE_VARINT)) {
      good = in.ReadVarint32(&type);
      tensor.header.set_dtype(static_cast<v1::DataType>(type));
    } else if (tag == tag_of(v1::Tensor::kShapeFieldNumber,
                             WireFormatLite::WIRETYPE_LENGTH_DELIMITED)) {
      good = ReadShape(in, tensor.header);
    } else {
      StringOutputStream stream(&rest);
      CodedOutputStream out(&stream);
      good = WireFormatLite::SkipField(&in, tag, &out);
    }
    if (!good) return false;
  }
  return in.ConsumedEntireMessage() &&
         (rest.empty() || tensor.header.MergeFromString(rest));
}

// One length-delimited field.
template <typename Read>
bool ReadNested(CodedInputStream& in, const Read& read) {
  uint32_t length = 0;
  if (!in.ReadVarint32(&length) || length > kMaxLength) return false;
  const auto limit = in.PushLimit(static_cast<int>(length));
  // The limit of the message around it may come first, or the end of all.
  if (in.BytesUntilLimit() != static_cast<int>(length) || !read() ||
      in.BytesUntilLimit() != 0) {
    return false;
  }
  in.PopLimit(limit);
  return true;
}

bool ReadAnswer(ZeroCopyInputStream* answer, int stats_number,
                std::span<AnswerTensor> tensors, v1::ExecutionStats* stats) {
  CodedInputStream in(answer);
  while (const uint32_t tag = in.ReadTag()) {
    const int number = WireFormatLite::GetTagFieldNumber(tag);
    const bool nested = WireFormatLite::GetTagWireType(tag) ==
                        WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
    const auto tensor = std::find_if(
        tensors.begin(), tensors.end(),
        [&](const AnswerTensor& t) { return t.field_number == number; });
    bool good = false;
    if (nested && tensor != tensors.end()) {
      good = ReadNested(in, [&] { return ReadTensor(in, *tensor); });
    } else if (nested && number == stats_number) {
      good = ReadNested(in, [&] {
        return stats->MergeFromCodedStream(&in) && in.ConsumedEntireMessage();
      });
    } else {
      good = WireFormatLite::SkipField(&in, tag);
    }
    if (!good) return false;
  }
  return in.ConsumedEntireMessage();
}

std::vector<int64_t> ShapeOf(const v1::Tensor& proto) {
  return {proto.shape().begin(), proto.shape().end()};
}

// What the server wrote is there already, and as long as was asked for.
absl::Status CheckShared(const AnswerTensor& tensor) {
  const v1::Tensor& proto = tensor.header;
  const Elements& target = tensor.target;
  const auto count = ElementCount(ShapeOf(proto));
  const SharedPlace place = {
      .handle = proto.shared_memory().handle(),
      .offset_bytes = proto.shared_memory().offset_bytes()};
  if (proto.has_shared_memory() && !tensor.data_bytes &&
      place == *target.place() && count &&
      proto.dtype() == EncodeType(target.type()) &&
      static_cast<uint64_t>(*count) *
              static_cast<uint64_t>(SizeOf(target.type())) ==
          target.bytes().size()) {
    return absl::OkStatus();
  }
  return BadResponse(absl::StrCat(
      tensor.name, ": the server did not answer where it was asked to"));
}

absl::Status CheckAnswer(const AnswerTensor& tensor) {
  if (tensor.target.place()) return CheckShared(tensor);
  if (!tensor.data_bytes ||
      tensor.header.payload_case() != v1::Tensor::PAYLOAD_NOT_SET) {
    return BadResponse(
        absl::StrCat(tensor.name, ": the server answered no data"));
  }
  return CheckAnswer(tensor.name, tensor.header, *tensor.data_bytes,
                     tensor.target);
}

absl::StatusOr<ExecutionStats> ReadTensors(ZeroCopyInputStream* answer,
                                           int stats_number,
                                           std::span<AnswerTensor> tensors) {
  v1::ExecutionStats stats;
  if (!ReadAnswer(answer, stats_number, tensors, &stats)) {
    return BadResponse("the server's answer does not parse");
  }
  for (const AnswerTensor& tensor : tensors) {
    if (absl::Status status = CheckAnswer(tensor); !status.ok()) return status;
  }
  return DecodeStats(stats);
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

absl::Status CheckAnswer(absl::string_view name, const v1::Tensor& header,
                         uint64_t size_bytes, const Elements& target) {
  const std::vector<int64_t> shape = ShapeOf(header);
  const auto described = [&] {
    return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
  };
  const auto count = ElementCount(shape);
  const auto element_bytes = static_cast<uint64_t>(SizeOf(target.type()));
  if (header.dtype() != EncodeType(target.type()) || !count ||
      static_cast<uint64_t>(*count) != size_bytes / element_bytes ||
      size_bytes % element_bytes != 0) {
    return BadResponse(absl::StrCat(
        name, ": the server answered ", size_bytes, " bytes of dtype ",
        static_cast<int>(header.dtype()), " for shape ", described()));
  }
  if (target.bytes().size() != size_bytes) {
    return FieldError(
        name,
        absl::StrCat("room for ", *count, " elements for an answer of shape ",
                     described()),
        absl::StrCat("room for ", target.bytes().size() / element_bytes));
  }
  return absl::OkStatus();
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

absl::StatusOr<AttentionReply> ReadReply(ZeroCopyInputStream* answer,
                                         const AttentionOutputs& outputs) {
  using Response = v1::AttentionResponse;
  AnswerTensor both[] = {{.field_number = Response::kOutputFieldNumber,
                          .name = "output",
                          .target = outputs.output},
                         {.field_number = Response::kLseFieldNumber,
                          .name = "lse",
                          .target = outputs.lse.value_or(Elements())}};
  const std::span<AnswerTensor> tensors(both, outputs.lse ? 2 : 1);
  absl::StatusOr<ExecutionStats> stats =
      ReadTensors(answer, Response::kStatsFieldNumber, tensors);
  if (!stats.ok()) return stats.status();
  AttentionReply reply;
  reply.output_shape = ShapeOf(tensors[0].header);
  reply.stats = *std::move(stats);
  if (outputs.lse) reply.lse_shape = ShapeOf(tensors[1].header);
  return reply;
}

absl::StatusOr<ExecutionStats> ReadReply(ZeroCopyInputStream* answer,
                                         const BackwardOutputs& outputs) {
  using Response = v1::AttentionBackwardResponse;
  AnswerTensor tensors[] = {{.field_number = Response::kGradQueryFieldNumber,
                             .name = "grad_query",
                             .target = outputs.grad_query},
                            {.field_number = Response::kGradKeyFieldNumber,
                             .name = "grad_key",
                             .target = outputs.grad_key},
                            {.field_number = Response::kGradValueFieldNumber,
                             .name = "grad_value",
                             .target = outputs.grad_value}};
  return ReadTensors(answer, Response::kStatsFieldNumber, tensors);
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
