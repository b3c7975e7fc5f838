#include "client/answer_reader.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/error_details.h"
#include "client/request_encoder.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/wire_format_lite.h"

namespace attnd::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;
using google::protobuf::io::ZeroCopyInputStream;

// What protobuf's own parser allows a field.
constexpr uint32_t kMaxLength = std::numeric_limits<int32_t>::max() - 16;

absl::Duration DecodeDuration(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
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
    return BadResponse();
  }
  for (const AnswerTensor& tensor : tensors) {
    if (absl::Status status = CheckAnswer(tensor); !status.ok()) return status;
  }
  return DecodeStats(stats);
}

}  // namespace

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
