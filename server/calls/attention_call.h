// Handles attention calls, forward and backward, from the bytes of the request
// to the bytes of the answer: admission, decoding, computation, encoding, and
// the memory for all of these. Does not use gRPC.
#ifndef ATTND_SERVER_CALLS_ATTENTION_CALL_H_
#define ATTND_SERVER_CALLS_ATTENTION_CALL_H_

#include <array>
#include <cstddef>
#include <cstdint>
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
#include "server/load/load_meter.h"
#include "server/memory/admission.h"
#include "server/shared_memory/shared_tensors.h"
#include "wire/message_splitter.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::server {

// The rpcs that compute attention or its gradients, with one message each way.
enum class AttentionMethod {
  kAttention = static_cast<int>(ServiceMethod::kAttention),
  kSelfAttention = static_cast<int>(ServiceMethod::kSelfAttention),
  kCrossAttention = static_cast<int>(ServiceMethod::kCrossAttention),
  kAttentionBackward = static_cast<int>(ServiceMethod::kAttentionBackward)
};

// One attention call of a client, with its memory. This class has the steps
// that every call takes. Derived classes receive the tensors and send the
// answer: UnaryCall (below) in one message each way, and StreamCall
// (server/calls/stream_call.h) in chunks.
//
// Shared pointers own a call: one in the rpc that made it, one in the job while
// it runs, and one in each piece of the answer until the piece is sent. When
// the last one is destroyed, the call frees its memory and gives its
// reservation back.
class AttentionCall : public std::enable_shared_from_this<AttentionCall> {
 public:
  virtual ~AttentionCall();
  AttentionCall(const AttentionCall&) = delete;
  AttentionCall& operator=(const AttentionCall&) = delete;

  // Makes the call stop as soon as possible, with CANCELLED. Thread-safe. You
  // can call this at any time.
  void Cancel() { stop_.Cancel(); }

  // Returns how the answer was computed. Call it when the call ends. It means
  // something only if the call succeeded.
  const RunStats& stats() const { return stats_; }
  // Returns the bytes of the tensors in shared memory that the call reads and
  // writes. Call it when the call ends.
  CallBytes shared_bytes() const { return shared_bytes_; }

 protected:
  // `context` must outlive the call. `caller` is the number of who calls
  // (Admission::Admit).
  AttentionCall(const ServiceContext& context, AttentionMethod method,
                SteadyTime deadline, uint64_t caller)
      : context_(context),
        method_(method),
        order_{.caller = caller, .deadline = deadline},
        stop_(deadline) {}

  // The next four functions are the steps of a call. Call each of them once, in
  // this order.

  // Reserves a slot, and `message_bytes`, the size of the message that begins
  // the call. Returns an error if they are not available, if the call has been
  // cancelled, or if its deadline has passed.
  absl::Status Admit(int64_t message_bytes);
  // Checks the request, refuses it if it could not end before its deadline,
  // reserves the most bytes that the call will ever hold, and allocates memory
  // for its inputs. Adds to `source` the copies that the
  // workers have to make to that memory: of tensors in the message to which
  // `split` belongs, and of those tensors in shared memory that must not be
  // read in place.
  absl::Status TakeRequest(const AttentionTensors& tensors,
                           const SplitMessage& split, PayloadSource& source);
  // Allocates memory for the answer, and shrinks the reservation to what the
  // call holds while it computes. Before this, free the parsed request, and
  // also its message unless `source` keeps it.
  absl::Status AllocateOutputs();
  // Starts the computation in the engine. If `source` is not null, the workers
  // first make its copies. The inputs are freed before `done` is called.
  void Submit(AttentionEngine::Done done, InputSource* source = nullptr);

  // Call it when the answer has been computed.
  void set_stats(const RunStats& stats) { stats_ = stats; }

  bool backward() const {
    return method_ == AttentionMethod::kAttentionBackward;
  }
  const ServiceContext& context() const { return context_; }
  AttentionMethod method() const { return method_; }
  uint64_t caller() const { return order_.caller; }
  // Returns OK until the call is cancelled or its deadline has passed.
  absl::Status StopStatus() const { return stop_.Check(); }
  PayloadKind kind() const { return kind_; }
  Admission::Reservation& reservation() { return reservation_; }
  // Returns the memory from which the kernel reads the tensor of `role`. The
  // request must have that tensor.
  std::span<std::byte> Input(TensorRole role);
  // Returns how many bytes the call holds while it receives chunks (if it is
  // streamed) and while it computes.
  int64_t computing_bytes() const { return cost_.computing_bytes; }
  // Returns how many of computing_bytes() are for messages.
  int64_t wire_bytes() const { return cost_.wire_bytes; }
  // Returns the tensors of the answer. They have data after AllocateOutputs.
  const std::vector<ResponseTensor>& answers() const { return answers_; }
  // Frees the memory of the answer.
  void FreeOutputs() { outputs_ = Workspace(); }
  // Shrinks the reservation to what the answer takes until it is sent.
  void ShrinkToAnswer();

 private:
  // Takes a place in the order of the workers.
  absl::Status TakeTicket(const MemoryEstimate& estimate);
  absl::Status Reserve(const AttentionTensors& tensors,
                       const DecodedRequest& decoded, int64_t decoding_bytes);
  absl::Status PlaceInputs(const AttentionTensors& tensors,
                           const DecodedRequest& decoded,
                           const SplitMessage& split, PayloadSource& source);
  // Returns whether the tensor of `role` is copied to memory of the call. It is
  // not copied if it is the same tensor as that of an earlier role, or if it is
  // in shared memory. Only a mask in shared memory is copied all the same,
  // because the client must not be able to change it while the kernels use it.
  bool IsCopied(const AttentionTensors& tensors, size_t role) const;
  // Returns whether the workers copy the tensor of `role` from the message that
  // began the call.
  bool IsInMessage(const AttentionTensors& tensors, size_t role) const;
  // Returns the tensors of the answer without their data.
  std::vector<ResponseTensor> Answers(const AttentionTensors& tensors) const;

  const ServiceContext& context_;
  const AttentionMethod method_;
  const JobOrder order_;
  StopSignal stop_;
  JobTicket ticket_;
  Admission::Reservation reservation_;
  int64_t message_bytes_ = 0;  // the size of the message that began the call
  std::optional<AttentionProblem> problem_;
  PayloadKind kind_ = PayloadKind::kData;
  CallCost cost_;
  SharedTensors shared_;
  CallBytes shared_bytes_;
  Workspace inputs_;
  Workspace outputs_;
  // Where the kernel reads the tensor of each role. Null if the request lacks
  // it.
  std::array<const std::byte*, kTensorRoles> input_data_{};
  std::array<int64_t, kTensorRoles> input_bytes_{};
  std::vector<ResponseTensor> answers_;
  std::vector<std::byte*> output_data_;  // where the kernel writes answers_
  RunStats stats_;
};

// An attention call that receives one message and sends one.
class UnaryCall : public AttentionCall {
 public:
  using Done = std::function<void(absl::StatusOr<OutgoingMessage>)>;

  UnaryCall(const ServiceContext& context, AttentionMethod method,
            SteadyTime deadline, uint64_t caller = 0)
      : AttentionCall(context, method, deadline, caller) {}
  ~UnaryCall() override;

  // Starts the call and returns without waiting for the answer. A call that
  // does not fit the memory budget fails before memory for it is allocated.
  // Calls `done` once: in this thread, in the thread of ServiceContext::decoder
  // or in a worker. `done` must not block.
  //
  // The workers copy the tensors in `received`. The rest of the message is
  // decoded in this thread if it is light (wire/message_splitter.h), and
  // otherwise in the decode thread.
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
  OutgoingMessage Encode();

  Done done_;
  PayloadSource source_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_ATTENTION_CALL_H_
