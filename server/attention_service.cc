#include "server/attention_service.h"

#include <chrono>
#include <memory>
#include <string_view>
#include <utility>

#include "attnd/v1/attention.grpc.pb.h"
#include "server/attention_call.h"
#include "server/benchmark_call.h"
#include "server/message_stream.h"
#include "server/plain_calls.h"
#include "server/rpc_adapter.h"
#include "server/silence_watch.h"
#include "server/stream_call.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

using grpc::ByteBuffer;
using grpc::CallbackServerContext;

// Writes one debug line a call, never what tensors hold.
class CallLog {
 public:
  explicit CallLog(std::string_view method) : method_(method) {}

  void Finished(const absl::Status& status) { code_ = status.code(); }
  ~CallLog() {
    if (!spdlog::should_log(spdlog::level::debug)) return;
    const auto took = std::chrono::steady_clock::now() - begin_;
    spdlog::debug(
        "{} {} {} us", method_, absl::StatusCodeToString(code_),
        std::chrono::duration_cast<std::chrono::microseconds>(took).count());
  }

 private:
  std::string_view method_;
  absl::StatusCode code_ = absl::StatusCode::kOk;
  std::chrono::steady_clock::time_point begin_ =
      std::chrono::steady_clock::now();
};

// Answers a unary call, where `answer` is what the call came to.
template <typename Reactor>
void FinishUnary(Reactor* reactor, CallbackServerContext& rpc,
                 ByteBuffer* response, CallLog& log,
                 absl::StatusOr<ResponsePieces> answer) {
  const absl::Status status = answer.status();
  log.Finished(status);
  if (status.ok()) *response = ToByteBuffer(*std::move(answer));
  // The reactor may be gone when this returns.
  reactor->Finish(ToGrpcStatus(status, rpc));
}

class AttentionReactor final : public grpc::ServerUnaryReactor {
 public:
  AttentionReactor(const ServiceContext& context, AttentionMethod method,
                   std::string_view name, CallbackServerContext& rpc)
      : log_(name),
        rpc_(rpc),
        call_(std::make_shared<UnaryCall>(context, method, DeadlineOf(rpc))) {}

  void Start(absl::StatusOr<ReceivedMessage> received, ByteBuffer* response) {
    if (!received.ok()) {
      FinishUnary(this, rpc_, response, log_, received.status());
      return;
    }
    // The call outlives the reactor where it answers before Start returns.
    const std::shared_ptr<UnaryCall> call = call_;
    call->Start(*std::move(received),
                [this, response](absl::StatusOr<ResponsePieces> answer) {
                  FinishUnary(this, rpc_, response, log_, std::move(answer));
                });
  }
  void OnCancel() override { call_->Cancel(); }
  void OnDone() override { delete this; }
  // Neither of them blocks, so neither needs a thread of its own: gRPC wakes
  // one for each otherwise, which a small call pays for.
  bool InternalInlineable() override { return true; }

 private:
  CallLog log_;
  CallbackServerContext& rpc_;
  const std::shared_ptr<UnaryCall> call_;
};

// A call that is answered before its handler returns.
class PlainReactor final : public grpc::ServerUnaryReactor {
 public:
  PlainReactor(std::string_view name, CallbackServerContext& rpc)
      : log_(name), rpc_(rpc) {}

  void Start(absl::StatusOr<ResponsePieces> answer, ByteBuffer* response) {
    FinishUnary(this, rpc_, response, log_, std::move(answer));
  }
  void OnDone() override { delete this; }

 private:
  CallLog log_;
  CallbackServerContext& rpc_;
};

class BenchmarkReactor final : public grpc::ServerWriteReactor<ByteBuffer>,
                               private MessageSink {
 public:
  BenchmarkReactor(const ServiceContext& context, BenchmarkRunner& runner,
                   CallbackServerContext& rpc)
      : log_("Benchmark"),
        rpc_(rpc),
        call_(std::make_shared<BenchmarkCall>(context, runner,
                                              static_cast<MessageSink&>(*this),
                                              DeadlineOf(rpc))) {}

  void Start(const absl::StatusOr<ReceivedMessage>& received) {
    if (!received.ok()) {
      Finish(received.status());
      return;
    }
    const std::shared_ptr<BenchmarkCall> call = call_;
    call->Start(*received);
  }
  void OnWriteDone(bool ok) override {
    const std::shared_ptr<BenchmarkCall> call = call_;
    call->OnWritten(ok);
  }
  void OnCancel() override { call_->Cancel(); }
  void OnDone() override { delete this; }

 private:
  void Write(ResponsePieces message) override {
    outgoing_ = ToByteBuffer(std::move(message));
    StartWrite(&outgoing_);
  }
  void Finish(const absl::Status& status) override {
    log_.Finished(status);
    grpc::ServerWriteReactor<ByteBuffer>::Finish(ToGrpcStatus(status, rpc_));
  }

  CallLog log_;
  CallbackServerContext& rpc_;
  ByteBuffer outgoing_;
  const std::shared_ptr<BenchmarkCall> call_;
};

class StreamReactor final
    : public grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>,
      private MessageStream {
 public:
  StreamReactor(const ServiceContext& context,
                std::shared_ptr<MessageQuota> messages,
                CallbackServerContext& rpc)
      : log_("AttentionStream"),
        rpc_(rpc),
        messages_(std::move(messages)),
        call_(std::make_shared<StreamCall>(
            context, static_cast<MessageStream&>(*this), DeadlineOf(rpc))) {}

  void Start(SilenceWatch& watch,
             absl::StatusOr<Admission::Reservation> arrival) {
    if (!arrival.ok()) {
      Finish(arrival.status());
      return;
    }
    watch.Add(call_);
    call_->Start(*std::move(arrival));
  }
  void OnReadDone(bool ok) override {
    const std::shared_ptr<StreamCall> call = call_;
    if (ok) {
      call->OnMessage(TakeMessage(&incoming_, messages_));
    } else {
      call->OnEnd();
    }
  }
  void OnWriteDone(bool ok) override {
    const std::shared_ptr<StreamCall> call = call_;
    call->OnWritten(ok);
  }
  void OnCancel() override { call_->Cancel(); }
  void OnDone() override { delete this; }

 private:
  using Reactor = grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>;

  void Read() override { StartRead(&incoming_); }
  void Break() override { rpc_.TryCancel(); }
  void Write(ResponsePieces message) override {
    outgoing_ = ToByteBuffer(std::move(message));
    StartWrite(&outgoing_);
  }
  void Finish(const absl::Status& status) override {
    log_.Finished(status);
    Reactor::Finish(ToGrpcStatus(status, rpc_));
  }

  CallLog log_;
  CallbackServerContext& rpc_;
  const std::shared_ptr<MessageQuota> messages_;
  ByteBuffer incoming_;
  ByteBuffer outgoing_;
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
        arrivals_(/*budget_bytes=*/0, context.admission.max_in_flight()),
        silence_watch_(context.stream_idle_timeout) {}

  grpc::ServerUnaryReactor* Attention(CallbackServerContext* rpc,
                                      const ByteBuffer* request,
                                      ByteBuffer* response) override {
    return Compute(AttentionMethod::kAttention, "Attention", rpc, request,
                   response);
  }
  grpc::ServerUnaryReactor* SelfAttention(CallbackServerContext* rpc,
                                          const ByteBuffer* request,
                                          ByteBuffer* response) override {
    return Compute(AttentionMethod::kSelfAttention, "SelfAttention", rpc,
                   request, response);
  }
  grpc::ServerUnaryReactor* CrossAttention(CallbackServerContext* rpc,
                                           const ByteBuffer* request,
                                           ByteBuffer* response) override {
    return Compute(AttentionMethod::kCrossAttention, "CrossAttention", rpc,
                   request, response);
  }
  grpc::ServerUnaryReactor* AttentionBackward(CallbackServerContext* rpc,
                                              const ByteBuffer* request,
                                              ByteBuffer* response) override {
    return Compute(AttentionMethod::kAttentionBackward, "AttentionBackward",
                   rpc, request, response);
  }
  grpc::ServerUnaryReactor* MemoryEstimate(CallbackServerContext* rpc,
                                           const ByteBuffer* request,
                                           ByteBuffer* response) override {
    return Plain("MemoryEstimate", AnswerMemoryEstimate, rpc, request,
                 response);
  }
  grpc::ServerUnaryReactor* GetServerInfo(CallbackServerContext* rpc,
                                          const ByteBuffer* request,
                                          ByteBuffer* response) override {
    return Plain("GetServerInfo", AnswerServerInfo, rpc, request, response);
  }
  grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>* AttentionStream(
      CallbackServerContext* rpc) override {
    auto* reactor = new StreamReactor(context_, messages_, *rpc);
    reactor->Start(silence_watch_, arrivals_.Admit(0));
    return reactor;
  }
  grpc::ServerWriteReactor<ByteBuffer>* Benchmark(
      CallbackServerContext* rpc, const ByteBuffer* request) override {
    auto* reactor = new BenchmarkReactor(context_, benchmarks_, *rpc);
    reactor->Start(TakeMessage(request, messages_));
    return reactor;
  }

 private:
  grpc::ServerUnaryReactor* Compute(AttentionMethod method,
                                    std::string_view name,
                                    CallbackServerContext* rpc,
                                    const ByteBuffer* request,
                                    ByteBuffer* response) {
    auto* reactor = new AttentionReactor(context_, method, name, *rpc);
    reactor->Start(TakeMessage(request, messages_), response);
    return reactor;
  }

  using Answer = absl::StatusOr<ResponsePieces> (*)(const ServiceContext&,
                                                    const ReceivedMessage&);
  grpc::ServerUnaryReactor* Plain(std::string_view name, Answer answer,
                                  CallbackServerContext* rpc,
                                  const ByteBuffer* request,
                                  ByteBuffer* response) {
    auto* reactor = new PlainReactor(name, *rpc);
    const absl::StatusOr<ReceivedMessage> received =
        TakeMessage(request, messages_);
    if (received.ok()) {
      reactor->Start(answer(context_, *received), response);
    } else {
      reactor->Start(received.status(), response);
    }
    return reactor;
  }

  const ServiceContext& context_;
  const std::shared_ptr<MessageQuota> messages_;
  // Of streams whose headers are still to come. Apart from those that were let
  // in, which a drain waits for and who have shown what they are for.
  Admission arrivals_;
  SilenceWatch silence_watch_;
  BenchmarkRunner benchmarks_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAttentionService(
    const ServiceContext& context, std::shared_ptr<MessageQuota> messages) {
  return std::make_unique<RawAttentionService>(context, std::move(messages));
}

}  // namespace attnd::server
