#include "client/answer_reader.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "client/error_details.h"
#include "client/request_encoder.h"
#include "google/protobuf/arena.h"
#include "wire/message_splitter.h"

namespace attnd::client {
namespace {

absl::Duration DecodeDuration(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

// A tensor of an answer: what was received, and what was expected.
struct AnswerTensor {
  absl::string_view name;             // in errors
  const v1::Tensor& received;         // has a token instead of its data
  Elements target;                    // the output of the caller
  const std::vector<int64_t>& shape;  // the expected one
};

std::vector<int64_t> ShapeOf(const v1::Tensor& proto) {
  return {proto.shape().begin(), proto.shape().end()};
}

// Returns whether `bytes` are `count` elements of `type`. Computes no product,
// because the shape that a server sends could make it overflow.
bool AreElements(int64_t bytes, int64_t count, DataType type) {
  return bytes % SizeOf(type) == 0 && bytes / SizeOf(type) == count;
}

int64_t BytesOf(const Elements& elements) {
  return static_cast<int64_t>(elements.bytes().size());
}

// Checks a tensor that the server wrote to shared memory itself.
absl::Status CheckShared(const AnswerTensor& tensor) {
  const v1::Tensor& received = tensor.received;
  const Elements& target = tensor.target;
  const std::vector<int64_t> shape = ShapeOf(received);
  const auto count = ElementCount(shape);
  const SharedPlace place = {
      .handle = received.shared_memory().handle(),
      .offset_bytes = received.shared_memory().offset_bytes()};
  if (received.has_shared_memory() && place == *target.place() &&
      shape == tensor.shape && count &&
      received.dtype() == EncodeType(target.type()) &&
      AreElements(BytesOf(target), *count, target.type())) {
    return absl::OkStatus();
  }
  return BadResponse(absl::StrCat(
      tensor.name,
      ": the server did not write the answer to the region of the request"));
}

// Checks all tensors of an answer, and then copies their elements.
absl::Status TakeTensors(const ReceivedMessage& answer,
                         const SplitMessage& split,
                         std::span<const AnswerTensor> tensors) {
  for (const AnswerTensor& tensor : tensors) {
    if (tensor.target.place()) {
      ATTND_RETURN_IF_ERROR(CheckShared(tensor));
      continue;
    }
    if (tensor.received.payload_case() != v1::Tensor::kData) {
      return BadResponse(
          absl::StrCat(tensor.name, ": the server sent no data"));
    }
    const int64_t data_bytes =
        PayloadOf(split, tensor.received.data()).size_bytes;
    ATTND_RETURN_IF_ERROR(CheckAnswer(tensor.name, tensor.received,
                                      tensor.target, tensor.shape, data_bytes));
  }
  for (const AnswerTensor& tensor : tensors) {
    if (tensor.target.place()) continue;
    answer.CopyTo(PayloadOf(split, tensor.received.data()),
                  tensor.target.bytes().data());
  }
  return absl::OkStatus();
}

// Parses `answer` into `message`, except for the data of its tensors.
absl::StatusOr<SplitMessage> Parse(const ReceivedMessage& answer,
                                   google::protobuf::Message& message) {
  absl::StatusOr<SplitMessage> split =
      SplitPayloads(answer, message.GetDescriptor());
  if (!split.ok() || !ParseHeader(*split, message).ok()) return BadResponse();
  return split;
}

ServerLoad DecodeLoad(const v1::ServerLoad& proto) {
  ServerLoad load;
  load.uptime = DecodeDuration(proto.uptime());
  load.in_flight = proto.in_flight();
  load.max_in_flight = proto.max_in_flight();
  load.reserved_bytes = proto.reserved_bytes();
  load.connections = proto.connections();
  load.max_connections = proto.max_connections();
  load.busy_threads = proto.busy_threads();
  for (const v1::MethodLoad& method : proto.methods()) {
    load.methods.push_back(
        {.method = method.method(),
         .finished = method.finished(),
         .failed = method.failed(),
         .total_time = DecodeDuration(method.total_time()),
         .queue_time = DecodeDuration(method.queue_time()),
         .compute_time = DecodeDuration(method.compute_time()),
         .flops = method.flops()});
  }
  return load;
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
                         std::optional<int64_t> data_bytes) {
  const std::vector<int64_t> answered = ShapeOf(header);
  const auto count = ElementCount(answered);
  if (header.dtype() != EncodeType(target.type()) || !count ||
      (data_bytes && !AreElements(*data_bytes, *count, target.type()))) {
    return BadResponse(absl::StrCat(
        name, ": the server sent ",
        data_bytes ? absl::StrCat(*data_bytes, " bytes of ") : "", "dtype ",
        static_cast<int>(header.dtype()), " for shape ", ShapeText(answered)));
  }
  if (answered != shape) {
    return BadResponse(absl::StrCat(name, ": expected an answer of shape ",
                                    ShapeText(shape), ", got ",
                                    ShapeText(answered)));
  }
  if (!AreElements(BytesOf(target), *count, target.type())) {
    return FieldError(
        name,
        absl::StrCat("memory for ", *count,
                     " elements, because the answer has shape ",
                     ShapeText(shape)),
        absl::StrCat("memory for ", BytesOf(target) / SizeOf(target.type())));
  }
  return absl::OkStatus();
}

absl::StatusOr<StreamedAnswer> ReadStreamed(const ReceivedMessage& message) {
  StreamedAnswer answer;
  ATTND_ASSIGN_OR_RETURN(const SplitMessage split,
                         Parse(message, answer.message));
  answer.data = PayloadOf(split, answer.message.chunk().data());
  const bool has_data = !answer.message.chunk().data().empty();
  if (split.payloads.size() != (has_data ? 1 : 0)) return BadResponse();
  return answer;
}

absl::StatusOr<AttentionReply> ReadReply(const ReceivedMessage& answer,
                                         const ForwardAnswer& expected) {
  // All parts of a small answer fit here, so that malloc is not needed.
  alignas(8) char block[1024];
  google::protobuf::Arena arena(block, sizeof(block));
  auto& response =
      *google::protobuf::Arena::CreateMessage<v1::AttentionResponse>(&arena);
  ATTND_ASSIGN_OR_RETURN(const SplitMessage split, Parse(answer, response));
  const AttentionOutputs& outputs = expected.outputs;
  const AnswerTensor both[] = {
      {"output", response.output(), outputs.output, expected.output_shape},
      {"lse", response.lse(), outputs.lse.value_or(Elements()),
       expected.lse_shape}};
  ATTND_RETURN_IF_ERROR(
      TakeTensors(answer, split, std::span(both).first(outputs.lse ? 2 : 1)));
  AttentionReply reply;
  reply.output_shape = expected.output_shape;
  if (outputs.lse) reply.lse_shape = expected.lse_shape;
  reply.stats = DecodeStats(response.stats());
  return reply;
}

absl::StatusOr<ExecutionStats> ReadReply(const ReceivedMessage& answer,
                                         const BackwardAnswer& expected) {
  v1::AttentionBackwardResponse response;
  ATTND_ASSIGN_OR_RETURN(const SplitMessage split, Parse(answer, response));
  const BackwardOutputs& outputs = expected.outputs;
  const AnswerTensor tensors[] = {
      {"grad_query", response.grad_query(), outputs.grad_query,
       expected.query_shape},
      {"grad_key", response.grad_key(), outputs.grad_key, expected.key_shape},
      {"grad_value", response.grad_value(), outputs.grad_value,
       expected.value_shape}};
  ATTND_RETURN_IF_ERROR(TakeTensors(answer, split, tensors));
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
  switch (proto.answer_case()) {
    case v1::MemoryEstimateResponse::kMaxSeqLen:
      estimate.largest = proto.max_seq_len();
      break;
    case v1::MemoryEstimateResponse::kMaxBatch:
      estimate.largest = proto.max_batch();
      break;
    case v1::MemoryEstimateResponse::kMaxConcurrency:
      estimate.largest = proto.max_concurrency();
      break;
    case v1::MemoryEstimateResponse::ANSWER_NOT_SET:
      break;
  }
  return estimate;
}

absl::StatusOr<ServerInfo> ReadServerInfo(const ReceivedMessage& answer) {
  v1::GetServerInfoResponse proto;
  ReceivedStream stream(answer);
  if (!proto.ParseFromZeroCopyStream(&stream)) return BadResponse();
  ServerInfo info;
  info.version = proto.version();
  info.isa = proto.isa();
  info.threads = proto.threads();
  info.max_receive_message_bytes = proto.max_receive_message_bytes();
  info.max_send_message_bytes = proto.max_send_message_bytes();
  info.memory_budget_bytes = proto.memory_budget_bytes();
  info.max_benchmark_vectors = proto.max_benchmark_vectors();
  info.features.assign(proto.features().begin(), proto.features().end());
  info.load = DecodeLoad(proto.load());
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
