#include "client/answer_reader.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/error_details.h"
#include "client/request_encoder.h"
#include "client/wire_fields.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"

namespace attnd::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::ZeroCopyInputStream;

absl::Duration DecodeDuration(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

// A tensor of an answer: what is known of it, and what came.
struct AnswerTensor {
  int field_number;
  absl::string_view name;  // what an error calls it
  Elements target;
  const std::vector<int64_t>& shape;  // the one that it has to have
  v1::Tensor header = {};             // without its data
  std::optional<uint64_t> data_bytes = {};
};

// Elements that do not fit their target are passed over, and found out later.
bool ReadData(CodedInputStream& in, AnswerTensor& tensor) {
  int length = 0;
  if (!ReadLength(in, &length)) return false;
  tensor.data_bytes = static_cast<uint64_t>(length);
  const std::span<std::byte> room = tensor.target.bytes();
  return *tensor.data_bytes == room.size() ? in.ReadRaw(room.data(), length)
                                           : in.Skip(length);
}

// The field as it is written by default, which a server does.
bool ReadShape(CodedInputStream& in, v1::Tensor& header) {
  return WireFormatLite::ReadPackedPrimitive<int64_t,
                                             WireFormatLite::TYPE_INT64>(
      &in, header.mutable_shape());
}

bool ReadTensor(CodedInputStream& in, AnswerTensor& tensor) {
  std::string rest;
  const auto read = [&](uint32_t tag) -> std::optional<bool> {
    uint32_t type = 0;
    switch (tag) {
      case BytesTag(v1::Tensor::kDataFieldNumber):
        return ReadData(in, tensor);
      case VarintTag(v1::Tensor::kDtypeFieldNumber):
        if (!in.ReadVarint32(&type)) return false;
        tensor.header.set_dtype(static_cast<v1::DataType>(type));
        return true;
      case BytesTag(v1::Tensor::kShapeFieldNumber):
        return ReadShape(in, tensor.header);
      default:
        return std::nullopt;
    }
  };
  return ReadFields(in, &rest, read) &&
         (rest.empty() || tensor.header.MergeFromString(rest));
}

bool ReadAnswer(ZeroCopyInputStream* answer, int stats_number,
                std::span<AnswerTensor> tensors, v1::ExecutionStats* stats) {
  CodedInputStream in(answer);
  const auto read = [&](uint32_t tag) -> std::optional<bool> {
    for (AnswerTensor& tensor : tensors) {
      if (tag != BytesTag(tensor.field_number)) continue;
      return ReadNested(in, [&] { return ReadTensor(in, tensor); });
    }
    if (tag != BytesTag(stats_number)) return std::nullopt;
    return ReadNested(in, [&] {
      return stats->MergeFromCodedStream(&in) && in.ConsumedEntireMessage();
    });
  };
  return ReadFields(in, nullptr, read);
}

// By hand, for protobuf would copy the data to a string first. The data has to
// come last, as everything that writes messages writes it.
bool ReadChunk(CodedInputStream& in, const ChunkRoom& room,
               v1::TensorChunk& place, absl::Status& refusal) {
  bool has_data = false;
  const auto read = [&](uint32_t tag) -> std::optional<bool> {
    if (has_data && WireFormatLite::GetTagFieldNumber(tag) <=
                        v1::TensorChunk::kDataFieldNumber) {
      return false;
    }
    uint32_t role = 0;
    uint64_t offset = 0;
    int length = 0;
    switch (tag) {
      case VarintTag(v1::TensorChunk::kRoleFieldNumber):
        if (!in.ReadVarint32(&role)) return false;
        place.set_role(static_cast<v1::TensorRole>(role));
        return true;
      case VarintTag(v1::TensorChunk::kOffsetBytesFieldNumber):
        if (!in.ReadVarint64(&offset)) return false;
        place.set_offset_bytes(static_cast<int64_t>(offset));
        return true;
      case BytesTag(v1::TensorChunk::kDataFieldNumber): {
        has_data = true;
        if (!ReadLength(in, &length)) return false;
        const auto to = room(place, static_cast<size_t>(length));
        refusal = to.status();
        return to.ok() && in.ReadRaw(to->data(), length);
      }
      default:
        return std::nullopt;
    }
  };
  return ReadFields(in, nullptr, read);
}

std::vector<int64_t> ShapeOf(const v1::Tensor& proto) {
  return {proto.shape().begin(), proto.shape().end()};
}

// Without a product, which a server's shape could make overflow.
bool AreElements(uint64_t bytes, int64_t count, DataType type) {
  const auto element_bytes = static_cast<uint64_t>(SizeOf(type));
  return bytes % element_bytes == 0 &&
         bytes / element_bytes == static_cast<uint64_t>(count);
}

// What the server wrote is there already, and as long as was asked for.
absl::Status CheckShared(const AnswerTensor& tensor) {
  const v1::Tensor& proto = tensor.header;
  const Elements& target = tensor.target;
  const std::vector<int64_t> shape = ShapeOf(proto);
  const auto count = ElementCount(shape);
  const SharedPlace place = {
      .handle = proto.shared_memory().handle(),
      .offset_bytes = proto.shared_memory().offset_bytes()};
  if (proto.has_shared_memory() && !tensor.data_bytes &&
      place == *target.place() && shape == tensor.shape && count &&
      proto.dtype() == EncodeType(target.type()) &&
      AreElements(target.bytes().size(), *count, target.type())) {
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
  return CheckAnswer(tensor.name, tensor.header, tensor.target, tensor.shape,
                     tensor.data_bytes);
}

absl::StatusOr<ExecutionStats> ReadTensors(ZeroCopyInputStream* answer,
                                           int stats_number,
                                           std::span<AnswerTensor> tensors) {
  v1::ExecutionStats stats;
  if (!ReadAnswer(answer, stats_number, tensors, &stats)) {
    return BadResponse();
  }
  for (const AnswerTensor& tensor : tensors) {
    if (absl::Status status = CheckAnswer(tensor); !status.ok()) return status;
  }
  return DecodeStats(stats);
}

std::string Described(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace

ForwardAnswer AnswerTo(const AttentionInputs& inputs,
                       const AttentionOptions& options,
                       const AttentionOutputs& outputs) {
  return {outputs, OutputShape(inputs.query.shape, inputs.value.shape),
          LseShape(inputs.query.shape, options.layout)};
}

BackwardAnswer AnswerTo(const BackwardInputs& inputs,
                        const BackwardOutputs& outputs) {
  return {outputs, inputs.query.shape, inputs.key.shape, inputs.value.shape};
}

absl::Status CheckAnswer(absl::string_view name, const v1::Tensor& header,
                         const Elements& target,
                         const std::vector<int64_t>& shape,
                         std::optional<uint64_t> data_bytes) {
  const std::vector<int64_t> answered = ShapeOf(header);
  const auto count = ElementCount(answered);
  if (header.dtype() != EncodeType(target.type()) || !count ||
      (data_bytes && !AreElements(*data_bytes, *count, target.type()))) {
    return BadResponse(absl::StrCat(
        name, ": the server answered ",
        data_bytes ? absl::StrCat(*data_bytes, " bytes of ") : "", "dtype ",
        static_cast<int>(header.dtype()), " for shape ", Described(answered)));
  }
  if (answered != shape) {
    return BadResponse(absl::StrCat(name, ": the server answered shape ",
                                    Described(answered), " where ",
                                    Described(shape), " was asked for"));
  }
  const uint64_t room_bytes = target.bytes().size();
  if (!AreElements(room_bytes, *count, target.type())) {
    return FieldError(
        name,
        absl::StrCat("room for ", *count, " elements for an answer of shape ",
                     Described(shape)),
        absl::StrCat("room for ", room_bytes / static_cast<uint64_t>(
                                                   SizeOf(target.type()))));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::AttentionStreamResponse> ReadStreamed(
    ZeroCopyInputStream* message, const ChunkRoom& room) {
  CodedInputStream in(message);
  v1::AttentionStreamResponse response;
  std::string rest;
  absl::Status refusal;
  const auto read = [&](uint32_t tag) -> std::optional<bool> {
    if (tag != BytesTag(v1::AttentionStreamResponse::kChunkFieldNumber)) {
      return std::nullopt;
    }
    if (response.has_chunk()) return false;
    return ReadNested(in, [&] {
      return ReadChunk(in, room, *response.mutable_chunk(), refusal);
    });
  };
  const bool good = ReadFields(in, &rest, read);
  if (!refusal.ok()) return refusal;
  const bool has_chunk = response.has_chunk();
  if (!good || !response.MergeFromString(rest) ||
      has_chunk != response.has_chunk()) {
    return BadResponse();
  }
  return response;
}

absl::StatusOr<AttentionReply> ReadReply(ZeroCopyInputStream* answer,
                                         const ForwardAnswer& expected) {
  using Response = v1::AttentionResponse;
  const AttentionOutputs& outputs = expected.outputs;
  AnswerTensor both[] = {{.field_number = Response::kOutputFieldNumber,
                          .name = "output",
                          .target = outputs.output,
                          .shape = expected.output_shape},
                         {.field_number = Response::kLseFieldNumber,
                          .name = "lse",
                          .target = outputs.lse.value_or(Elements()),
                          .shape = expected.lse_shape}};
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
                                         const BackwardAnswer& expected) {
  using Response = v1::AttentionBackwardResponse;
  AnswerTensor tensors[] = {{.field_number = Response::kGradQueryFieldNumber,
                             .name = "grad_query",
                             .target = expected.outputs.grad_query,
                             .shape = expected.query_shape},
                            {.field_number = Response::kGradKeyFieldNumber,
                             .name = "grad_key",
                             .target = expected.outputs.grad_key,
                             .shape = expected.key_shape},
                            {.field_number = Response::kGradValueFieldNumber,
                             .name = "grad_value",
                             .target = expected.outputs.grad_value,
                             .shape = expected.value_shape}};
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
  result.repetitions = proto.repetitions();
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

absl::StatusOr<ServerInfo> ReadServerInfo(ZeroCopyInputStream* answer) {
  v1::GetServerInfoResponse proto;
  if (!proto.ParseFromZeroCopyStream(answer)) return BadResponse();
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
