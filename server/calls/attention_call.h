// Attention calls, forward and backward, from the bytes that came to the bytes
// that go: admission, decoding, compute, encoding, and the memory of all
// of them. Knows no gRPC.
#ifndef ATTND_SERVER_CALLS_ATTENTION_CALL_H_
#define ATTND_SERVER_CALLS_ATTENTION_CALL_H_

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/attention_engine.h"
#include "core/attention_problem.h"
#include "core/tile_scheduler.h"
#include "core/workspace.h"
#include "cost/call_cost.h"
#include "server/calls/service_context.h"
#include "server/codec/payload_source.h"
#include "server/codec/request_codec.h"
#include "server/codec/response_codec.h"
#include "server/memory/admission.h"
#include "server/shared_memory/shared_tensors.h"
#include "wire/message_splitter.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::server {

// Which method was called.
enum class AttentionMethod {
  kAttention,
  kSelfAttention,
  kCrossAttention,
  kAttentionBackward
};

// One attention, its memory, and the steps that every call takes, whichever way
// its tensors come and go. Held by shared pointers: by its caller, by the job
// while it runs, and by the answer's pieces until they are sent. The last of
// them frees the memory and gives the reservation back.
class AttentionCall : public std::enable_shared_from_this<AttentionCall> {
 public:
  virtual ~AttentionCall();
  AttentionCall(const AttentionCall&) = delete;
  AttentionCall& operator=(const AttentionCall&) = delete;

  // Stops what runs. Thread-safe; may come at any time.
  void Cancel() { stop_.Cancel(); }

 protected:
  // `context` must outlive the call.
  AttentionCall(const ServiceContext& context, AttentionMethod method,
                SteadyTime deadline)
      : context_(context), method_(method), stop_(deadline) {}

  // The steps, in their order, each once.

  // Takes a slot, and the bytes of the message that begins the call; refuses a
  // call that is over.
  absl::Status Admit(int64_t message_bytes);
  // Checks the request, reserves the most that the call will hold, and adds to
  // `source` what workers have to copy: the tensors whose payload came in the
  // message that was split, and what has to be copied of shared memory.
  absl::Status TakeRequest(const AttentionTensors& tensors,
                           const SplitMessage& split, PayloadSource& source);
  // Once the parsed request is gone, and the message where `source` does not
  // need it: what is left is what computing holds.
  absl::Status AllocateOutputs();
  // Hands the job to the engine, which loads what `source` has, if there is
  // one. The inputs are gone when `done` is called.
  void Submit(AttentionEngine::Done done, InputSource* source = nullptr);

  bool backward() const {
    return method_ == AttentionMethod::kAttentionBackward;
  }
  const ServiceContext& context() const { return context_; }
  AttentionMethod method() const { return method_; }
  // OK until the call is cancelled or its deadline has passed.
  absl::Status StopStatus() const { return stop_.Check(); }
  PayloadKind kind() const { return kind_; }
  Admission::Reservation& reservation() { return reservation_; }
  // Where the kernel reads the tensor of `role`, which the request has.
  std::span<std::byte> Input(TensorRole role);
  // What computing holds, and receiving before it.
  int64_t computing_bytes() const { return cost_.computing_bytes; }
  // What is answered; with data once the outputs are allocated.
  const std::vector<ResponseTensor>& answers() const { return answers_; }
  void DropOutputs() { outputs_ = Workspace(); }
  // Gives back what is held beside the answer.
  void ShrinkToAnswer();

 private:
  absl::Status Reserve(const AttentionTensors& tensors,
                       const DecodedRequest& decoded, int64_t decoding_bytes);
  absl::Status PlaceInputs(const AttentionTensors& tensors,
                           const DecodedRequest& decoded,
                           const SplitMessage& split, PayloadSource& source);
  // Whether the tensor of `role` is copied: not where it came as another role,
  // and not where it lies in a region. A mask says which keys are seen, so it
  // is read once, where its client cannot write to it any more.
  bool IsCopied(const AttentionTensors& tensors, size_t role) const;
  // Whether workers copy it from the message that began the call.
  bool IsInMessage(const AttentionTensors& tensors, size_t role) const;
  // What the method answers, without its data.
  std::vector<ResponseTensor> Answers(const AttentionTensors& tensors) const;

  const ServiceContext& context_;
  const AttentionMethod method_;
  StopSignal stop_;
  Admission::Reservation reservation_;
  int64_t message_bytes_ = 0;  // of the one that began the call
  std::optional<AttentionProblem> problem_;
  PayloadKind kind_ = PayloadKind::kData;
  CallCost cost_;
  SharedTensors shared_;
  Workspace inputs_;
  Workspace outputs_;
  std::array<const std::byte*, kTensorRoles> input_data_{};  // null: none
  std::array<int64_t, kTensorRoles> input_bytes_{};
  std::vector<ResponseTensor> answers_;
  std::vector<std::byte*> output_data_;  // of answers_
};

// One message in, one message out.
class UnaryCall : public AttentionCall {
 public:
  using Done = std::function<void(absl::StatusOr<OutgoingMessage>)>;

  UnaryCall(const ServiceContext& context, AttentionMethod method,
            SteadyTime deadline)
      : AttentionCall(context, method, deadline) {}
  ~UnaryCall() override;

  // Hands the job to the engine and returns; refuses before anything is
  // allocated for what does not fit. Workers copy the tensors that `received`
  // carries. If `received` is not light, the decode thread does everything
  // else. `done` is called once, by Start or by one of those threads, and must
  // not block.
  void Start(ReceivedMessage received, Done done);

 private:
  template <typename Request>
  void Begin(ReceivedMessage received);
  // `light` is what SplitIfLight returned for the message.
  template <typename Request>
  void Continue(ReceivedMessage received, std::optional<SplitMessage> light);
  template <typename Request>
  absl::Status Decode(const ReceivedMessage& received,
                      std::optional<SplitMessage> light);
  void Answer(absl::Status status, const RunStats& stats);
  OutgoingMessage Encode(const RunStats& stats);

  Done done_;
  PayloadSource source_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_ATTENTION_CALL_H_
