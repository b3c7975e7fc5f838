#include "client/attention_client.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "attnd/v1/attention.pb.h"
#include "base/status_macros.h"
#include "client/answer_reader.h"
#include "client/error_details.h"
#include "client/forward_call.h"
#include "client/inline_call.h"
#include "client/request_encoder.h"
#include "client/retry.h"
#include "client/retrying_channel.h"
#include "google/protobuf/wrappers.pb.h"
#include "wire/method_names.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::client {
namespace {

absl::StatusOr<OutgoingMessage> EncodeBackward(const BackwardInputs& inputs,
                                               const AttentionOptions& options,
                                               int64_t max_message_bytes) {
  using Request = v1::AttentionBackwardRequest;
  OutgoingMessage message;
  AddTensor(Request::kQueryFieldNumber, inputs.query, &message);
  AddTensor(Request::kKeyFieldNumber, inputs.key, &message);
  AddTensor(Request::kValueFieldNumber, inputs.value, &message);
  AddTensor(Request::kOutputFieldNumber, inputs.output, &message);
  AddTensor(Request::kLseFieldNumber, inputs.lse, &message);
  AddTensor(Request::kGradOutputFieldNumber, inputs.grad_output, &message);
  AddOptions(Request::kOptionsFieldNumber, options, {}, &message);
  ATTND_RETURN_IF_ERROR(CheckSize(message, max_message_bytes));
  return message;
}

}  // namespace

PendingCall::PendingCall(std::shared_ptr<CallCanceller> call)
    : call_(std::move(call)) {}

void PendingCall::Cancel() const {
  if (call_) call_->Cancel();
}

AttentionClient::AttentionClient(ClientOptions options)
    : options_(std::move(options)),
      channel_(std::make_shared<RetryingChannel>(options_)),
      limits_(std::make_shared<ServerLimits>()) {}

AttentionClient AttentionClient::WithDeadline(absl::Duration deadline) const {
  AttentionClient other = *this;
  other.options_.deadline = deadline;
  return other;
}

absl::StatusOr<AttentionReply> AttentionClient::Attention(
    const AttentionInputs& inputs, const AttentionOutputs& outputs,
    const AttentionOptions& options) const {
  return CallForward(*channel_, *limits_,
                     {Method::kAttention, inputs, outputs, options}, options_);
}

absl::StatusOr<AttentionReply> AttentionClient::SelfAttention(
    const ConstTensor& sequence, const AttentionOutputs& outputs,
    const AttentionOptions& options) const {
  return CallForward(*channel_, *limits_,
                     {Method::kSelfAttention,
                      {.query = sequence, .key = sequence, .value = sequence},
                      outputs,
                      options},
                     options_);
}

absl::StatusOr<AttentionReply> AttentionClient::CrossAttention(
    const ConstTensor& queries, const ConstTensor& kv_sequence,
    const AttentionOutputs& outputs, const AttentionOptions& options) const {
  return CallForward(
      *channel_, *limits_,
      {Method::kCrossAttention,
       {.query = queries, .key = kv_sequence, .value = kv_sequence},
       outputs,
       options},
      options_);
}

PendingCall AttentionClient::AttentionAsync(const AttentionInputs& inputs,
                                            const AttentionOutputs& outputs,
                                            const AttentionOptions& options,
                                            Done done) const {
  return StartForward(channel_, limits_,
                      {Method::kAttention, inputs, outputs, options}, options_,
                      std::move(done));
}

PendingCall AttentionClient::SelfAttentionAsync(const ConstTensor& sequence,
                                                const AttentionOutputs& outputs,
                                                const AttentionOptions& options,
                                                Done done) const {
  return StartForward(channel_, limits_,
                      {Method::kSelfAttention,
                       {.query = sequence, .key = sequence, .value = sequence},
                       outputs,
                       options},
                      options_, std::move(done));
}

PendingCall AttentionClient::CrossAttentionAsync(
    const ConstTensor& queries, const ConstTensor& kv_sequence,
    const AttentionOutputs& outputs, const AttentionOptions& options,
    Done done) const {
  return StartForward(
      channel_, limits_,
      {Method::kCrossAttention,
       {.query = queries, .key = kv_sequence, .value = kv_sequence},
       outputs,
       options},
      options_, std::move(done));
}

absl::StatusOr<ExecutionStats> AttentionClient::AttentionBackward(
    const BackwardInputs& inputs, const BackwardOutputs& outputs,
    const AttentionOptions& options) const {
  const auto time = CallTime::From(options_.deadline);
  ATTND_ASSIGN_OR_RETURN(
      const OutgoingMessage request,
      EncodeBackward(inputs, options, options_.max_message_bytes));
  absl::StatusOr<ExecutionStats> reply;
  ATTND_RETURN_IF_ERROR(
      channel_->Call(method::kAttentionBackward, request, time,
                     [&](const ReceivedMessage& answer) {
                       reply = ReadReply(answer, AnswerTo(inputs, outputs));
                     }));
  return reply;
}

PendingCall AttentionClient::AttentionBackwardAsync(
    const BackwardInputs& inputs, const BackwardOutputs& outputs,
    const AttentionOptions& options, BackwardDone done) const {
  const auto time = CallTime::From(options_.deadline);
  absl::StatusOr<OutgoingMessage> request =
      EncodeBackward(inputs, options, options_.max_message_bytes);
  if (!request.ok()) {
    done(request.status());
    return {};
  }
  return PendingCall(channel_->Start(
      method::kAttentionBackward, *std::move(request), time,
      std::make_unique<InlineCall<BackwardAnswer, BackwardDone>>(
          AnswerTo(inputs, outputs), std::move(done))));
}

absl::StatusOr<BenchmarkResult> AttentionClient::Benchmark(
    const BenchmarkOptions& options,
    const std::function<bool(const BenchmarkProgress&)>& on_progress,
    const std::stop_token& stop) const {
  v1::BenchmarkResponse response;
  std::optional<BenchmarkResult> result;
  const absl::Status status = channel_->Stream(
      method::kBenchmark, EncodeBenchmark(options), &response,
      CallTime::From(options_.deadline), stop, [&] {
        if (response.has_result()) result = DecodeBenchmark(response.result());
        if (!response.has_progress() || !on_progress) return true;
        const v1::BenchmarkProgress& progress = response.progress();
        return on_progress(
            {.phase = progress.phase(),
             .fraction = progress.fraction(),
             .seconds_left = progress.has_seconds_left()
                                 ? std::optional(progress.seconds_left())
                                 : std::nullopt});
      });
  // A request to stop that comes after the result takes nothing away from it.
  if (result && stop.stop_requested() && absl::IsCancelled(status)) {
    return *result;
  }
  ATTND_RETURN_IF_ERROR(status);
  if (!result) {
    return BadResponse(
        "the server ended the benchmark without sending a result");
  }
  return *result;
}

absl::StatusOr<MemoryEstimate> AttentionClient::EstimateMemory(
    const MemoryEstimateOptions& options) const {
  v1::MemoryEstimateResponse response;
  ATTND_RETURN_IF_ERROR(
      channel_->Call(method::kMemoryEstimate, EncodeEstimate(options),
                     CallTime::From(options_.deadline), &response));
  return DecodeEstimate(response);
}

absl::StatusOr<ServerInfo> AttentionClient::GetServerInfo() const {
  return AskServer(*channel_, CallTime::From(options_.deadline));
}

absl::StatusOr<Health> AttentionClient::CheckHealth(
    const std::string& service) const {
  // HealthCheckRequest has one field, a string with number 1, and
  // HealthCheckResponse has one enum with number 1. So these wrapper messages
  // of protobuf have the same encoding. A copy of health.proto in this library
  // would conflict with a copy that the program links.
  google::protobuf::StringValue request;
  request.set_value(service);
  google::protobuf::Int32Value response;
  ATTND_RETURN_IF_ERROR(
      channel_->ForHealth().Call(method::kHealthCheck, request,
                                 CallTime::From(options_.deadline), &response));
  switch (response.value()) {
    case 1:
      return Health::kServing;
    case 2:
      return Health::kNotServing;
    default:
      return Health::kUnknown;
  }
}

}  // namespace attnd::client
