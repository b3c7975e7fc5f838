#include "server/calls/attention_call.h"

#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "base/tsan_ordering.h"
#include "core/job_queue.h"
#include "core/memory_estimator.h"
#include "server/codec/message_parser.h"
#include "server/codec/options_codec.h"
#include "server/status/status_convert.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

int64_t Aligned(int64_t bytes) { return RoundUp(bytes, Workspace::kAlignment); }

// Returns the first role whose tensor is the same as that of `role`. Such a
// tensor arrives once and is copied once, for the first role.
size_t FirstRole(const AttentionTensors& tensors, size_t role) {
  size_t first = 0;
  while (tensors.by_role[first].tensor != tensors.by_role[role].tensor) ++first;
  return first;
}

int64_t SizeBytes(const ResponseTensor& tensor) {
  int64_t bytes = SizeOf(tensor.dtype);
  for (const int64_t extent : tensor.shape) bytes *= extent;
  return bytes;
}

const float* Floats(const std::byte* data) {
  return reinterpret_cast<const float*>(data);
}
float* Floats(std::byte* data) { return reinterpret_cast<float*>(data); }

}  // namespace

AttentionCall::~AttentionCall() = default;

absl::Status AttentionCall::Admit(int64_t message_bytes) {
  ATTND_ASSIGN_OR_RETURN(reservation_,
                         context_.admission.Admit(message_bytes, caller()));
  message_bytes_ = message_bytes;
  return stop_.Check();
}

absl::Status AttentionCall::TakeRequest(const AttentionTensors& tensors,
                                        const SplitMessage& split,
                                        PayloadSource& source) {
  // While the options are decoded, two copies of their lists exist.
  const int64_t decoding_bytes =
      reservation_.bytes() + 2 * DecodedListBytes(*tensors.options);
  ATTND_RETURN_IF_ERROR(reservation_.GrowTo(decoding_bytes));
  ATTND_ASSIGN_OR_RETURN(const DecodedRequest decoded,
                         DecodeRequest(tensors, split));
  problem_ = decoded.problem;
  kind_ = decoded.kind;
  ATTND_ASSIGN_OR_RETURN(shared_,
                         FindSharedTensors(tensors, decoded, context_.regions));
  for (size_t role = 0; role < kTensorRoles; ++role) {
    if (shared_.inputs[role].region == nullptr) continue;
    if (FirstRole(tensors, role) != role) continue;
    shared_bytes_.shared_read += shared_.inputs[role].size_bytes;
  }
  shared_bytes_.shared_written =
      shared_.output.size_bytes + shared_.lse.size_bytes;
  answers_ = Answers(tensors);
  ATTND_RETURN_IF_ERROR(Reserve(tensors, decoded, decoding_bytes));
  return PlaceInputs(tensors, decoded, split, source);
}

// `decoding_bytes` is what the message and the parsed request hold.
absl::Status AttentionCall::Reserve(const AttentionTensors& tensors,
                                    const DecodedRequest& decoded,
                                    int64_t decoding_bytes) {
  const MemoryEstimator& estimator = context_.engine.estimator();
  const MemoryEstimate estimate = backward()
                                      ? estimator.EstimateBackward(*problem_)
                                      : estimator.Estimate(*problem_);
  TensorTransfer transfer{.transport = kind_ == PayloadKind::kSharedMemory
                                           ? Transport::kSharedMemory
                                       : tensors.streamed ? Transport::kStream
                                                          : Transport::kInline,
                          .max_message_bytes = context_.max_message_bytes,
                          .decoding_bytes = decoding_bytes,
                          .output_as_values = kind_ == PayloadKind::kValues};
  for (size_t role = 0; role < kTensorRoles; ++role) {
    if (IsCopied(tensors, role)) transfer.copied_bytes += decoded.bytes[role];
    if (IsInMessage(tensors, role)) {
      transfer.kept_message_bytes = message_bytes_;
    }
  }
  cost_ = CostOfCall(estimate, problem_->options(), transfer);
  if (estimate.flash_bytes == kMaxInt64 || cost_.peak_bytes == kMaxInt64) {
    return BytesOutOfRange();
  }
  if (cost_.response_bytes > context_.max_message_bytes) {
    return WithReason(
        absl::ResourceExhaustedError(
            absl::StrCat("the response would take up to ", cost_.response_bytes,
                         " bytes, but the limit (--max-message-bytes) is ",
                         context_.max_message_bytes)),
        kMessageTooLarge);
  }
  ATTND_RETURN_IF_ERROR(TakeTicket(estimate));
  absl::Status status = reservation_.GrowTo(cost_.peak_bytes);
  if (!status.ok()) ticket_.GiveBack();
  return status;
}

absl::Status AttentionCall::TakeTicket(const MemoryEstimate& estimate) {
  const DeadlineForecast forecast =
      context_.engine.Admit(*problem_, backward(), estimate, order_, ticket_);
  if (forecast.in_time) return absl::OkStatus();
  const auto milliseconds = [](std::chrono::nanoseconds time) {
    return absl::StrCat(
        std::chrono::ceil<std::chrono::milliseconds>(time).count(), " ms");
  };
  if (!forecast.retry_after) {
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat(
            "the deadline is too near: it is in ", milliseconds(forecast.left),
            ", but the call would take about ", milliseconds(forecast.needed),
            "; set a later deadline, or divide the call")),
        kDeadlineUnreachable);
  }
  const std::string times = absl::StrCat(
      "its deadline is in ", milliseconds(forecast.left),
      ", but it would end in about ", milliseconds(forecast.needed));
  const std::string text = absl::StrCat(
      forecast.own_deadline
          ? absl::StrCat("the server has too much work before this call: ",
                         times)
          : absl::StrCat("the server has too much work for this call: with it, "
                         "a call that it has accepted would be late (",
                         times, ")"),
      "; try again later, or at another server");
  return WithRetryDelay(
      WithReason(absl::ResourceExhaustedError(text), kDeadlineUnreachable),
      std::chrono::ceil<std::chrono::milliseconds>(*forecast.retry_after));
}

bool AttentionCall::IsCopied(const AttentionTensors& tensors,
                             size_t role) const {
  return tensors.by_role[role].tensor != nullptr &&
         FirstRole(tensors, role) == role &&
         (shared_.inputs[role].region == nullptr || role == kMask);
}

bool AttentionCall::IsInMessage(const AttentionTensors& tensors,
                                size_t role) const {
  return IsCopied(tensors, role) &&
         tensors.by_role[role].tensor->payload_case() == v1::Tensor::kData;
}

// Allocates memory for the inputs, and adds to `source` the copies that the
// workers make. The workers copy each of these tensors straight to where
// kernels read it.
absl::Status AttentionCall::PlaceInputs(const AttentionTensors& tensors,
                                        const DecodedRequest& decoded,
                                        const SplitMessage& split,
                                        PayloadSource& source) {
  std::array<int64_t, kTensorRoles> offsets{};
  int64_t size_bytes = 0;
  for (size_t role = 0; role < kTensorRoles; ++role) {
    offsets[role] = offsets[FirstRole(tensors, role)];
    if (!IsCopied(tensors, role)) continue;
    offsets[role] = size_bytes;
    size_bytes += Aligned(decoded.bytes[role]);
  }
  ATTND_ASSIGN_OR_RETURN(inputs_, context_.engine.pool().Reserve(size_bytes));
  input_bytes_ = decoded.bytes;
  std::array<const PayloadRange*, kTensorRoles> payloads{};
  for (size_t role = 0; role < kTensorRoles; ++role) {
    const v1::Tensor* const tensor = tensors.by_role[role].tensor;
    if (tensor == nullptr) continue;
    const SharedPart& part = shared_.inputs[role];
    if (part.region != nullptr && role != kMask) {
      input_data_[role] = part.data();
      continue;
    }
    std::byte* const data = inputs_.data() + offsets[role];
    input_data_[role] = data;
    if (!IsCopied(tensors, role) || ComesInChunks(*tensor)) continue;
    if (part.region != nullptr) {
      source.AddMemory(part.data(), part.size_bytes, data);
    } else if (tensor->payload_case() == v1::Tensor::kValues) {
      CopyValues(*tensor, data);
    } else {
      payloads[role] = &PayloadOf(split, tensor->data());
    }
  }
  // Key and value are added last and together, unless they are the same tensor
  // as another one or are not in the message.
  const bool apart = payloads[kKey] != nullptr && payloads[kValue] != nullptr;
  for (size_t role = 0; role < kTensorRoles; ++role) {
    if (payloads[role] == nullptr) continue;
    if (apart && (role == kKey || role == kValue)) continue;
    source.Add(*payloads[role], inputs_.data() + offsets[role]);
  }
  if (apart) {
    source.AddKeysAndValues(*payloads[kKey], inputs_.data() + offsets[kKey],
                            *payloads[kValue],
                            inputs_.data() + offsets[kValue]);
  }
  return absl::OkStatus();
}

std::span<std::byte> AttentionCall::Input(TensorRole role) {
  return {inputs_.data() + (input_data_[role] - inputs_.data()),
          static_cast<size_t>(input_bytes_[role])};
}

std::vector<ResponseTensor> AttentionCall::Answers(
    const AttentionTensors& tensors) const {
  if (backward()) {
    using Response = v1::AttentionBackwardResponse;
    const auto shape_of = [&tensors](TensorRole role) {
      const auto& shape = tensors.by_role[role].tensor->shape();
      return std::vector<int64_t>(shape.begin(), shape.end());
    };
    return {{.field_number = Response::kGradQueryFieldNumber,
             .shape = shape_of(kQuery)},
            {.field_number = Response::kGradKeyFieldNumber,
             .shape = shape_of(kKey)},
            {.field_number = Response::kGradValueFieldNumber,
             .shape = shape_of(kValue)}};
  }
  // The responses of all three forward methods have the same fields.
  using Response = v1::AttentionResponse;
  std::vector<ResponseTensor> answers = {
      {.field_number = Response::kOutputFieldNumber,
       .dtype = problem_->params().output_dtype,
       .shape = problem_->OutputShape()}};
  if (problem_->params().return_lse) {
    answers.push_back({.field_number = Response::kLseFieldNumber,
                       .shape = problem_->LseShape()});
  }
  if (kind_ == PayloadKind::kSharedMemory) {
    answers[0].place = tensors.options->output_region();
    if (answers.size() > 1) answers[1].place = tensors.options->lse_region();
  }
  return answers;
}

absl::Status AttentionCall::AllocateOutputs() {
  reservation_.ShrinkTo(cost_.computing_bytes);
  if (kind_ == PayloadKind::kSharedMemory) {
    output_data_.push_back(shared_.output.writable_data());
    if (answers_.size() > 1) {
      output_data_.push_back(shared_.lse.writable_data());
    }
    return absl::OkStatus();
  }
  int64_t size_bytes = 0;
  for (const ResponseTensor& answer : answers_) {
    size_bytes += Aligned(SizeBytes(answer));
  }
  ATTND_ASSIGN_OR_RETURN(outputs_, context_.engine.pool().Reserve(size_bytes));
  std::byte* next = outputs_.data();
  for (ResponseTensor& answer : answers_) {
    const int64_t answer_bytes = SizeBytes(answer);
    answer.data = {next, static_cast<size_t>(answer_bytes)};
    output_data_.push_back(next);
    next += Aligned(answer_bytes);
  }
  return absl::OkStatus();
}

void AttentionCall::Submit(AttentionEngine::Done done, InputSource* source) {
  // Frees the inputs before `done`, because the answer may take long to send.
  AttentionEngine::Done end = [this, done = std::move(done)](
                                  absl::Status status, const RunStats& stats) {
    inputs_ = Workspace();
    shared_ = SharedTensors();
    done(std::move(status), stats);
  };
  const auto& in = input_data_;
  const auto& out = output_data_;
  if (backward()) {
    context_.engine.SubmitBackward(*problem_,
                                   {.query = Floats(in[kQuery]),
                                    .key = Floats(in[kKey]),
                                    .value = Floats(in[kValue]),
                                    .bias = in[kBias],
                                    .mask = in[kMask],
                                    .output = Floats(in[kOutput]),
                                    .lse = Floats(in[kLse]),
                                    .grad_output = Floats(in[kGradOutput]),
                                    .grad_query = Floats(out[0]),
                                    .grad_key = Floats(out[1]),
                                    .grad_value = Floats(out[2])},
                                   &stop_, std::move(end), source, order_,
                                   std::move(ticket_));
    return;
  }
  context_.engine.Submit(*problem_,
                         {.query = in[kQuery],
                          .key = in[kKey],
                          .value = in[kValue],
                          .output = out[0],
                          .lse = out.size() > 1 ? Floats(out[1]) : nullptr,
                          .bias = in[kBias],
                          .mask = in[kMask]},
                         &stop_, std::move(end), source, order_,
                         std::move(ticket_));
}

void AttentionCall::ShrinkToAnswer() {
  int64_t held_bytes = cost_.answering_bytes;
  for (const ResponseTensor& answer : answers_) {
    if (!answer.place) held_bytes += Aligned(SizeBytes(answer));
  }
  reservation_.ShrinkTo(held_bytes);
}

// gRPC orders Answer before the destructor, and this tells thread sanitizer.
UnaryCall::~UnaryCall() { TsanAcquire(this); }

void UnaryCall::Start(ReceivedMessage received, Done done) {
  done_ = std::move(done);
  switch (method()) {
    case AttentionMethod::kAttention:
      return Begin<v1::AttentionRequest>(std::move(received));
    case AttentionMethod::kSelfAttention:
      return Begin<v1::SelfAttentionRequest>(std::move(received));
    case AttentionMethod::kCrossAttention:
      return Begin<v1::CrossAttentionRequest>(std::move(received));
    case AttentionMethod::kAttentionBackward:
      return Begin<v1::AttentionBackwardRequest>(std::move(received));
  }
}

// Admits the call before its message waits for the decode thread. This limits
// how many messages wait there.
template <typename Request>
void UnaryCall::Begin(ReceivedMessage received) {
  absl::Status status = Admit(received.size_bytes());
  absl::StatusOr<std::optional<SplitMessage>> light;
  if (status.ok()) {
    light = SplitIfLight(received, Request::descriptor());
    status = light.status();
  }
  if (!status.ok()) {
    received = ReceivedMessage();
    Answer(std::move(status), {});
    return;
  }
  DecodeThread* const decoder = context().decoder;
  if (*light || decoder == nullptr) {
    Continue<Request>(std::move(received), *std::move(light));
    return;
  }
  decoder->Run(caller(), [this, self = shared_from_this(),
                          received = std::move(received)]() mutable {
    Continue<Request>(std::move(received), std::nullopt);
  });
}

template <typename Request>
void UnaryCall::Continue(ReceivedMessage received,
                         std::optional<SplitMessage> light) {
  absl::Status status = StopStatus();
  if (status.ok()) status = Decode<Request>(received, std::move(light));
  if (status.ok()) {
    source_.Keep(std::move(received));
    status = AllocateOutputs();
  }
  if (!status.ok()) {
    received = ReceivedMessage();
    Answer(std::move(status), {});
    return;
  }
  Submit([this, self = shared_from_this()](
             absl::Status end,
             const RunStats& stats) { Answer(std::move(end), stats); },
         source_.empty() ? nullptr : &source_);
}

template <typename Request>
absl::Status UnaryCall::Decode(const ReceivedMessage& received,
                               std::optional<SplitMessage> light) {
  // All parts of a small request fit here, so that malloc is not needed.
  alignas(8) char block[2048];
  google::protobuf::Arena arena(block, sizeof(block));
  auto& request = *google::protobuf::Arena::CreateMessage<Request>(&arena);
  ATTND_ASSIGN_OR_RETURN(
      const SplitMessage split,
      ParseMessage(received, std::move(light), reservation(), request));
  return TakeRequest(AttentionTensors::Of(request), split, source_);
}

void UnaryCall::Answer(absl::Status status, const RunStats& stats) {
  source_.Clear();
  absl::StatusOr<OutgoingMessage> pieces = OutgoingMessage();
  if (status.ok()) {
    set_stats(stats);
    pieces = Encode();
  } else {
    pieces = std::move(status);
  }
  reservation().LeaveSlot();
  const Done done = std::move(done_);
  TsanRelease(this);
  done(std::move(pieces));
}

OutgoingMessage UnaryCall::Encode() {
  OutgoingMessage pieces = EncodeAnswer(
      {.tensors = answers(),
       .stats_field_number =
           backward() ? int{v1::AttentionBackwardResponse::kStatsFieldNumber}
                      : int{v1::AttentionResponse::kStatsFieldNumber},
       .stats = stats()},
      kind(), shared_from_this());
  // The answer has a copy of the numbers.
  if (kind() == PayloadKind::kValues) FreeOutputs();
  ShrinkToAnswer();
  return pieces;
}

}  // namespace attnd::server
