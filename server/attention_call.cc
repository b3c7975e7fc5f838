#include "server/attention_call.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/checked_math.h"
#include "core/field_error.h"
#include "server/reasons.h"
#include "server/response_codec.h"

namespace attnd::server {
namespace {

int64_t Aligned(int64_t bytes) { return RoundUp(bytes, Workspace::kAlignment); }

bool HasOwnKey(const AttentionTensors& tensors) {
  return tensors.key.tensor != tensors.query.tensor;
}

bool HasOwnValue(const AttentionTensors& tensors) {
  return tensors.value.tensor != tensors.key.tensor;
}

std::span<const float> Elements(const float* data, int64_t size_bytes) {
  return {data, static_cast<size_t>(size_bytes) / sizeof(float)};
}

}  // namespace

AttentionCall::~AttentionCall() {
  (void)answered_.load(std::memory_order_acquire);
}

void AttentionCall::Start(ReceivedMessage received, Done done) {
  const auto answer = [self = shared_from_this(), done = std::move(done)](
                          absl::Status status, const RunStats& stats) {
    absl::StatusOr<ResponsePieces> pieces = ResponsePieces();
    if (status.ok()) {
      pieces = self->Encode(stats);
    } else {
      pieces = std::move(status);
    }
    self->answered_.store(true, std::memory_order_release);
    done(std::move(pieces));
  };
  if (absl::Status status = Prepare(std::move(received)); !status.ok()) {
    answer(std::move(status), {});
    return;
  }
  context_.engine.Submit(*problem_, buffers_, &stop_, answer);
}

absl::Status AttentionCall::Prepare(ReceivedMessage received) {
  absl::StatusOr<Admission::Reservation> admitted =
      context_.admission.Admit(received.size_bytes());
  if (!admitted.ok()) return admitted.status();
  reservation_ = *std::move(admitted);
  if (absl::Status status = stop_.Check(); !status.ok()) return status;
  absl::Status status;
  switch (method_) {
    case ForwardMethod::kAttention:
      status = Decode<v1::AttentionRequest>(std::move(received));
      break;
    case ForwardMethod::kSelfAttention:
      status = Decode<v1::SelfAttentionRequest>(std::move(received));
      break;
    case ForwardMethod::kCrossAttention:
      status = Decode<v1::CrossAttentionRequest>(std::move(received));
      break;
  }
  if (!status.ok()) return status;
  // The request is gone by now; what is left is what computing holds.
  reservation_.ShrinkTo(computing_bytes_);
  return AllocateOutputs();
}

template <typename Request>
absl::Status AttentionCall::Decode(ReceivedMessage received) {
  Request request;
  const absl::StatusOr<SplitMessage> split =
      ParseMessage(received, reservation_, request);
  if (!split.ok()) return split.status();
  const AttentionTensors tensors = AttentionTensors::Of(request);
  absl::StatusOr<DecodedRequest> decoded = DecodeRequest(tensors, *split);
  if (!decoded.ok()) return decoded.status();
  problem_ = decoded->problem;
  kind_ = decoded->kind;
  if (absl::Status status = Reserve(tensors, reservation_.bytes());
      !status.ok()) {
    return status;
  }
  return CopyInputs(tensors, *split, received);
}

// `decoding_bytes` is what the message and its parsed form hold.
absl::Status AttentionCall::Reserve(const AttentionTensors& tensors,
                                    int64_t decoding_bytes) {
  absl::StatusOr<MemoryEstimate> estimate =
      context_.engine.estimator().Estimate(*problem_);
  if (!estimate.ok()) return estimate.status();
  // A tensor that plays several parts came once and is copied once.
  const int64_t shared_bytes =
      (HasOwnKey(tensors) ? 0 : problem_->key_bytes()) +
      (HasOwnValue(tensors) ? 0 : problem_->value_bytes());
  estimate->input_bytes -= shared_bytes;
  estimate->flash_bytes -= shared_bytes;
  const absl::StatusOr<RequestFootprint> footprint = InlineFootprint(*estimate);
  if (!footprint.ok()) return footprint.status();
  const int64_t response_bytes = estimate->output_bytes + kMessageEnvelopeBytes;
  if (response_bytes > context_.max_message_bytes) {
    return WithReason(absl::ResourceExhaustedError(absl::StrCat(
                          "the response would take up to ", response_bytes,
                          " bytes, the limit (--max-message-bytes) is ",
                          context_.max_message_bytes)),
                      kMessageTooLarge);
  }
  // As numbers the answer is copied into a message, and that into bytes.
  const int64_t copies =
      kind_ == PayloadKind::kValues ? 2 * estimate->output_bytes : 0;
  computing_bytes_ = estimate->flash_bytes + 2 * kMessageEnvelopeBytes + copies;
  return reservation_.GrowTo(
      std::max({footprint->peak_per_request_bytes, computing_bytes_,
                decoding_bytes + estimate->input_bytes}));
}

// This copy is the only one that a tensor sees on its way in. It runs in
// gRPC's callback thread: memory speed, so short beside the transfer that
// brought the bytes.
absl::Status AttentionCall::CopyInputs(const AttentionTensors& tensors,
                                       const SplitMessage& split,
                                       const ReceivedMessage& received) {
  const bool own_key = HasOwnKey(tensors);
  const bool own_value = HasOwnValue(tensors);
  const int64_t query_bytes = Aligned(problem_->query_bytes());
  const int64_t key_bytes = own_key ? Aligned(problem_->key_bytes()) : 0;
  const int64_t value_bytes = own_value ? Aligned(problem_->value_bytes()) : 0;
  absl::StatusOr<Workspace> inputs =
      Workspace::Reserve(query_bytes + key_bytes + value_bytes);
  if (!inputs.ok()) return inputs.status();
  inputs_ = *std::move(inputs);
  std::byte* const query = inputs_.data();
  std::byte* const key = own_key ? query + query_bytes : query;
  std::byte* const value = own_value ? key + key_bytes : key;
  CopyElements(*tensors.query.tensor, split, received, query);
  if (own_key) CopyElements(*tensors.key.tensor, split, received, key);
  if (own_value) CopyElements(*tensors.value.tensor, split, received, value);
  buffers_.query = reinterpret_cast<const float*>(query);
  buffers_.key = reinterpret_cast<const float*>(key);
  buffers_.value = reinterpret_cast<const float*>(value);
  return absl::OkStatus();
}

absl::Status AttentionCall::AllocateOutputs() {
  const bool with_lse = problem_->params().return_lse;
  const int64_t output_bytes = Aligned(problem_->output_bytes());
  absl::StatusOr<Workspace> outputs =
      Workspace::Reserve(output_bytes + (with_lse ? problem_->lse_bytes() : 0));
  if (!outputs.ok()) return outputs.status();
  outputs_ = *std::move(outputs);
  buffers_.output = outputs_.floats();
  if (with_lse) {
    buffers_.lse = reinterpret_cast<float*>(outputs_.data() + output_bytes);
  }
  return absl::OkStatus();
}

ResponsePieces AttentionCall::Encode(const RunStats& stats) {
  // The inputs go first: what waits to be sent is the output alone.
  inputs_ = Workspace();
  const ResponseTensor lse{
      problem_->LseShape(),
      Elements(buffers_.lse, buffers_.lse ? problem_->lse_bytes() : 0)};
  const AttentionAnswer answer{
      .output = {problem_->OutputShape(),
                 Elements(buffers_.output, problem_->output_bytes())},
      .lse = buffers_.lse != nullptr ? &lse : nullptr,
      .stats = stats};
  ResponsePieces pieces = EncodeAnswer(answer, kind_, shared_from_this());
  if (kind_ == PayloadKind::kValues) outputs_ = Workspace();
  reservation_.ShrinkTo(outputs_.size_bytes() + kMessageEnvelopeBytes +
                        (kind_ == PayloadKind::kValues
                             ? problem_->output_bytes() + problem_->lse_bytes()
                             : 0));
  return pieces;
}

}  // namespace attnd::server
