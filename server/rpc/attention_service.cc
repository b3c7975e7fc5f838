#include "server/rpc/attention_service.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "attnd/v1/attention.grpc.pb.h"
#include "server/access/caller.h"
#include "server/calls/attention_call.h"
#include "server/calls/benchmark_call.h"
#include "server/calls/message_stream.h"
#include "server/calls/plain_calls.h"
#include "server/calls/silence_watch.h"
#include "server/calls/stream_call.h"
#include "server/calls/unary_answer.h"
#include "server/load/load_meter.h"
#include "server/rpc/call_record.h"
#include "server/rpc/rpc_adapter.h"

namespace attnd::server {
namespace {

using grpc::ByteBuffer;
using grpc::CallbackServerContext;

// A call with one message each way. `watch` ends it if the client does not read
// the answer.
class UnaryReactor : public grpc::ServerUnaryReactor, private SendingRpc {
 public:
  // The references must outlive the reactor.
  UnaryReactor(ServiceMethod method, const ServiceContext& context,
               CallbackServerContext& rpc, ByteBuffer& response,
               SilenceWatch& watch, std::shared_ptr<UnaryAnswer> answer)
      : record_(method, rpc, context),
        rpc_(rpc),
        response_(response),
        watch_(watch),
        answer_(std::move(answer)) {}

  // Call it once. The reactor may be gone when it returns. `stats` is how the
  // answer was computed, and `shared` has the bytes of tensors in shared
  // memory.
  void Answer(absl::StatusOr<OutgoingMessage> answer,
              const RunStats& stats = {}, const CallBytes& shared = {}) {
    const absl::Status status = answer.status();
    if (status.ok()) record_.Sent(static_cast<int64_t>(answer->size_bytes()));
    record_.Finished(status, stats, shared);
    if (status.ok()) response_ = ToByteBuffer(*std::move(answer), sent_);
    answer_->Begin(*this);
    watch_.Add(answer_);
    Finish(ToGrpcStatus(status, rpc_));
  }
  void OnDone() override {
    answer_->Over();
    delete this;
  }
  // Nothing in a reactor blocks, so gRPC may call it in its own threads.
  // Otherwise gRPC would wake another thread, which takes a large part of the
  // time of a small call.
  bool InternalInlineable() override { return true; }

 protected:
  CallRecord& record() { return record_; }

 private:
  int64_t sent_bytes() override { return sent_.bytes(); }
  BreakFn MakeBreak() override { return server::MakeBreak(rpc_); }

  CallRecord record_;
  CallbackServerContext& rpc_;
  ByteBuffer& response_;  // keeps its slices until OnDone
  SentSlices sent_;
  SilenceWatch& watch_;
  const std::shared_ptr<UnaryAnswer> answer_;
};

// A call and the watch over its answer, in one block of memory.
// NOLINTNEXTLINE(misc-multiple-inheritance): saves an allocation per call.
class WatchedUnaryCall final : public UnaryCall, public UnaryAnswer {
 public:
  using UnaryCall::UnaryCall;
};

class AttentionReactor final : public UnaryReactor {
 public:
  AttentionReactor(ServiceMethod method, const ServiceContext& context,
                   CallbackServerContext& rpc, ByteBuffer& response,
                   SilenceWatch& watch, std::shared_ptr<WatchedUnaryCall> call)
      : UnaryReactor(method, context, rpc, response, watch, call),
        call_(std::move(call)) {}

  void Start(absl::StatusOr<ReceivedMessage> received) {
    if (!received.ok()) {
      Answer(received.status());
      return;
    }
    record().Received(received->size_bytes());
    // This keeps the call alive until Start returns, even if the call answers
    // before that and gRPC deletes the reactor.
    const std::shared_ptr<UnaryCall> call = call_;
    call->Start(
        *std::move(received), [this](absl::StatusOr<OutgoingMessage> answer) {
          Answer(std::move(answer), call_->stats(), call_->shared_bytes());
        });
  }
  void OnCancel() override {
    record().Cancelled();
    call_->Cancel();
  }

 private:
  const std::shared_ptr<UnaryCall> call_;
};

// A call that computes no attention (plain_calls.h).
class PlainReactor final : public UnaryReactor {
 public:
  using AnswerFn = void (*)(const ServiceContext&, uint64_t caller,
                            ReceivedMessage, const StopSignal&, PlainDone);

  // `context` must outlive the reactor.
  PlainReactor(ServiceMethod method, const ServiceContext& context,
               CallbackServerContext& rpc, ByteBuffer& response,
               SilenceWatch& watch)
      : UnaryReactor(method, context, rpc, response, watch,
                     std::make_shared<UnaryAnswer>()),
        context_(context),
        caller_(CallerNumber(rpc, context.access)),
        stop_(DeadlineOf(rpc)) {}

  void Start(AnswerFn answer, absl::StatusOr<ReceivedMessage> received) {
    if (!received.ok()) {
      Answer(received.status());
      return;
    }
    record().Received(received->size_bytes());
    answer(context_, caller_, *std::move(received), stop_,
           [this](absl::StatusOr<OutgoingMessage> pieces) {
             Answer(std::move(pieces));
           });
  }
  void OnCancel() override {
    record().Cancelled();
    stop_.Cancel();
  }

 private:
  const ServiceContext& context_;
  const uint64_t caller_;
  StopSignal stop_;
};

// A call of Benchmark: one message from the client, and a stream of answers.
class BenchmarkReactor final : public grpc::ServerWriteReactor<ByteBuffer>,
                               private MessageSink {
 public:
  BenchmarkReactor(const ServiceContext& context, BenchmarkRunner& runner,
                   CallbackServerContext& rpc)
      : record_(ServiceMethod::kBenchmark, rpc, context),
        rpc_(rpc),
        call_(std::make_shared<BenchmarkCall>(
            context, runner, static_cast<MessageSink&>(*this), DeadlineOf(rpc),
            std::chrono::steady_clock::now,
            CallerNumber(rpc, context.access))) {}

  void Start(SilenceWatch& watch,
             const absl::StatusOr<ReceivedMessage>& received) {
    if (!received.ok()) {
      Finish(received.status());
      return;
    }
    record_.Received(received->size_bytes());
    watch.Add(call_);
    const std::shared_ptr<BenchmarkCall> call = call_;
    call->Start(*received);
  }
  void OnWriteDone(bool ok) override {
    const std::shared_ptr<BenchmarkCall> call = call_;
    call->OnWritten(ok);
  }
  void OnCancel() override {
    record_.Cancelled();
    call_->Cancel();
  }
  void OnDone() override { delete this; }

 private:
  void Write(OutgoingMessage message) override {
    record_.Sent(static_cast<int64_t>(message.size_bytes()));
    outgoing_ = ToByteBuffer(std::move(message), sent_);
    StartWrite(&outgoing_);
  }
  int64_t sent_bytes() override { return sent_.bytes(); }
  void Break(const std::string& why) override {
    CancelCall(rpc_.c_call(), why);
  }
  void Finish(const absl::Status& status) override {
    record_.Finished(status, call_->stats());
    grpc::ServerWriteReactor<ByteBuffer>::Finish(ToGrpcStatus(status, rpc_));
  }

  CallRecord record_;
  CallbackServerContext& rpc_;
  ByteBuffer outgoing_;  // keeps its slices until the next is written
  SentSlices sent_;
  const std::shared_ptr<BenchmarkCall> call_;
};

// A call of AttentionStream: a stream of messages each way.
class StreamReactor final
    : public grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>,
      private MessageStream {
 public:
  StreamReactor(const ServiceContext& context,
                std::shared_ptr<MessageQuota> messages,
                CallbackServerContext& rpc, uint64_t caller)
      : record_(ServiceMethod::kAttentionStream, rpc, context),
        rpc_(rpc),
        messages_(std::move(messages)),
        call_(std::make_shared<StreamCall>(
            context, static_cast<MessageStream&>(*this), DeadlineOf(rpc),
            std::chrono::steady_clock::now, caller)) {}

  void Start(SilenceWatch& watch,
             absl::StatusOr<Admission::Reservation> pending) {
    if (!pending.ok()) {
      Finish(pending.status());
      return;
    }
    watch.Add(call_);
    call_->Start(*std::move(pending));
  }
  void OnReadDone(bool ok) override {
    const std::shared_ptr<StreamCall> call = call_;
    if (ok) {
      absl::StatusOr<ReceivedMessage> message =
          TakeMessage(&incoming_, messages_);
      if (message.ok()) record_.Received(message->size_bytes());
      call->OnMessage(std::move(message));
    } else {
      call->OnEnd();
    }
  }
  void OnWriteDone(bool ok) override {
    const std::shared_ptr<StreamCall> call = call_;
    call->OnWritten(ok);
  }
  void OnCancel() override {
    record_.Cancelled();
    call_->Cancel();
  }
  void OnDone() override { delete this; }

 private:
  using Reactor = grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>;

  void Read() override { StartRead(&incoming_); }
  void Write(OutgoingMessage message) override {
    record_.Sent(static_cast<int64_t>(message.size_bytes()));
    outgoing_ = ToByteBuffer(std::move(message), sent_);
    StartWrite(&outgoing_);
  }
  int64_t sent_bytes() override { return sent_.bytes(); }
  void Break(const std::string& why) override {
    CancelCall(rpc_.c_call(), why);
  }
  void Finish(const absl::Status& status) override {
    record_.Finished(status, call_->stats());
    Reactor::Finish(ToGrpcStatus(status, rpc_));
  }

  CallRecord record_;
  CallbackServerContext& rpc_;
  const std::shared_ptr<MessageQuota> messages_;
  ByteBuffer incoming_;
  ByteBuffer outgoing_;  // keeps its slices until the next is written
  SentSlices sent_;
  const std::shared_ptr<StreamCall> call_;
};

using Base = v1::AttentionService::Service;
using RawBase = v1::AttentionService::WithRawCallbackMethod_Attention<
    v1::AttentionService::WithRawCallbackMethod_SelfAttention<
        v1::AttentionService::WithRawCallbackMethod_CrossAttention<
            v1::AttentionService::WithRawCallbackMethod_AttentionBackward<
                v1::AttentionService::WithRawCallbackMethod_AttentionStream<
                    v1::AttentionService::WithRawCallbackMethod_Benchmark<
                        v1::AttentionService::
                            WithRawCallbackMethod_MemoryEstimate<
                                v1::AttentionService::
                                    WithRawCallbackMethod_GetServerInfo<
                                        Base>>>>>>>>;

class RawAttentionService final : public RawBase {
 public:
  RawAttentionService(const ServiceContext& context,
                      std::shared_ptr<MessageQuota> messages)
      : context_(context),
        messages_(std::move(messages)),
        pending_streams_(/*budget_bytes=*/0, context.admission.max_in_flight()),
        silence_watch_(context.stream_idle_timeout) {}

  grpc::ServerUnaryReactor* Attention(CallbackServerContext* rpc,
                                      const ByteBuffer* request,
                                      ByteBuffer* response) override {
    return Compute(AttentionMethod::kAttention, rpc, request, response);
  }
  grpc::ServerUnaryReactor* SelfAttention(CallbackServerContext* rpc,
                                          const ByteBuffer* request,
                                          ByteBuffer* response) override {
    return Compute(AttentionMethod::kSelfAttention, rpc, request, response);
  }
  grpc::ServerUnaryReactor* CrossAttention(CallbackServerContext* rpc,
                                           const ByteBuffer* request,
                                           ByteBuffer* response) override {
    return Compute(AttentionMethod::kCrossAttention, rpc, request, response);
  }
  grpc::ServerUnaryReactor* AttentionBackward(CallbackServerContext* rpc,
                                              const ByteBuffer* request,
                                              ByteBuffer* response) override {
    return Compute(AttentionMethod::kAttentionBackward, rpc, request, response);
  }
  grpc::ServerUnaryReactor* MemoryEstimate(CallbackServerContext* rpc,
                                           const ByteBuffer* request,
                                           ByteBuffer* response) override {
    return Plain(ServiceMethod::kMemoryEstimate, AnswerMemoryEstimate, rpc,
                 request, response);
  }
  grpc::ServerUnaryReactor* GetServerInfo(CallbackServerContext* rpc,
                                          const ByteBuffer* request,
                                          ByteBuffer* response) override {
    return Plain(ServiceMethod::kGetServerInfo, AnswerServerInfo, rpc, request,
                 response);
  }
  grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>* AttentionStream(
      CallbackServerContext* rpc) override {
    const uint64_t caller = CallerNumber(*rpc, context_.access);
    auto* reactor = new StreamReactor(context_, messages_, *rpc, caller);
    reactor->Start(silence_watch_, pending_streams_.Admit(0, caller));
    return reactor;
  }
  grpc::ServerWriteReactor<ByteBuffer>* Benchmark(
      CallbackServerContext* rpc, const ByteBuffer* request) override {
    auto* reactor = new BenchmarkReactor(context_, benchmarks_, *rpc);
    const absl::Status allowed = CheckIsAdmin(*rpc, context_.access);
    if (allowed.ok()) {
      reactor->Start(silence_watch_, TakeMessage(request, messages_));
    } else {
      reactor->Start(silence_watch_, allowed);
    }
    return reactor;
  }

 private:
  grpc::ServerUnaryReactor* Compute(AttentionMethod method,
                                    CallbackServerContext* rpc,
                                    const ByteBuffer* request,
                                    ByteBuffer* response) {
    auto* reactor =
        new AttentionReactor(static_cast<ServiceMethod>(method), context_, *rpc,
                             *response, silence_watch_,
                             std::make_shared<WatchedUnaryCall>(
                                 context_, method, DeadlineOf(*rpc),
                                 CallerNumber(*rpc, context_.access)));
    reactor->Start(TakeMessage(request, messages_));
    return reactor;
  }

  grpc::ServerUnaryReactor* Plain(ServiceMethod method,
                                  PlainReactor::AnswerFn answer,
                                  CallbackServerContext* rpc,
                                  const ByteBuffer* request,
                                  ByteBuffer* response) {
    auto* reactor =
        new PlainReactor(method, context_, *rpc, *response, silence_watch_);
    reactor->Start(answer, TakeMessage(request, messages_));
    return reactor;
  }

  const ServiceContext& context_;
  const std::shared_ptr<MessageQuota> messages_;
  // Limits how many streams have not sent a header yet. Such streams reserve no
  // bytes, so this has no budget. They are not calls in flight, because a drain
  // must not wait for them.
  Admission pending_streams_;
  SilenceWatch silence_watch_;
  BenchmarkRunner benchmarks_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAttentionService(
    const ServiceContext& context, std::shared_ptr<MessageQuota> messages) {
  return std::make_unique<RawAttentionService>(context, std::move(messages));
}

}  // namespace attnd::server
