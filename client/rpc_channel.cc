#include "client/rpc_channel.h"

#include <grpcpp/alarm.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/client_callback.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "client/default_service_config.h"
#include "client/error_details.h"
#include "google/protobuf/message_lite.h"
#include "wire/grpc/transport_arguments.h"
#include "wire/outgoing_message.h"

namespace attnd::client {
namespace {

using google::protobuf::MessageLite;

absl::Status ToAbsl(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
  if (!status.error_details().empty()) {
    result.SetPayload(kStatusPayloadUrl, absl::Cord(status.error_details()));
  }
  return result;
}

// Returns a buffer that refers to the bytes that have an owner, and that has a
// copy of the other bytes.
grpc::ByteBuffer ToByteBuffer(const OutgoingMessage& message) {
  std::vector<grpc::Slice> slices;
  slices.reserve(message.pieces().size() + 1);
  for (const OutgoingMessage::Piece& piece : message.pieces()) {
    if (piece.owner != nullptr) {
      HeldPiece* const held = HeldPiece::Hold(piece);
      const absl::string_view bytes = held->bytes();
      slices.emplace_back(const_cast<char*>(bytes.data()), bytes.size(),
                          HeldPiece::Drop, held);
    } else {
      slices.emplace_back(piece.bytes().data(), piece.bytes().size());
    }
  }
  // Without any slice, the buffer would not be a message.
  if (slices.empty()) slices.emplace_back();
  return {slices.data(), slices.size()};
}

// Returns a message that refers to the bytes of `buffer` and keeps them alive.
// If the buffer holds no message, returns an empty one.
ReceivedMessage ToMessage(const grpc::ByteBuffer& buffer) {
  const auto slices = std::make_shared<std::vector<grpc::Slice>>();
  if (!buffer.Valid() || !buffer.Dump(slices.get()).ok()) return {};
  std::vector<ReceivedMessage::Slice> views;
  views.reserve(slices->size());
  for (const grpc::Slice& slice : *slices) {
    views.push_back(
        {{reinterpret_cast<const char*>(slice.begin()), slice.size()}});
  }
  return {std::move(views), slices};
}

std::chrono::system_clock::time_point TimeAfter(absl::Duration pause) {
  // Reads the clock of the system instead of absl::Now, which has to
  // synchronize its own clock with it and so takes more time in a small call.
  return absl::ToChronoTime(absl::FromChrono(std::chrono::system_clock::now()) +
                            pause);
}

void SetTimeout(absl::Duration timeout, grpc::ClientContext& context) {
  if (timeout == absl::InfiniteDuration()) return;
  // A deadline that has passed is set at most an hour into the past, because
  // gRPC takes a time before 1970 to mean that there is no deadline.
  context.set_deadline(TimeAfter(std::max(timeout, -absl::Hours(1))));
}

// Keeps the queues that no call uses, so that the next call can use one again.
// Making a queue and shutting it down would cost a small call several
// microseconds. Thread-safe.
class IdleQueues {
 public:
  using Queue = std::unique_ptr<grpc::CompletionQueue>;

  ~IdleQueues() {
    void* tag = nullptr;
    bool ok = false;
    for (const Queue& queue : queues_) {
      queue->Shutdown();
      while (queue->Next(&tag, &ok)) continue;
    }
  }

  Queue Take() {
    const std::lock_guard lock(mutex_);
    if (queues_.empty()) return std::make_unique<grpc::CompletionQueue>();
    Queue queue = std::move(queues_.back());
    queues_.pop_back();
    return queue;
  }
  void Put(Queue queue) {
    const std::lock_guard lock(mutex_);
    queues_.push_back(std::move(queue));
  }

 private:
  std::mutex mutex_;
  std::vector<Queue> queues_;  // as many as there were calls at the same time
};

// The completion queue of one call. The thread that makes the call waits on it.
// Before you destroy it, call Wait for every operation that was started.
class CallQueue {
 public:
  explicit CallQueue(IdleQueues& idle) : idle_(idle), queue_(idle.Take()) {}
  ~CallQueue() { idle_.Put(std::move(queue_)); }
  CallQueue(const CallQueue&) = delete;
  CallQueue& operator=(const CallQueue&) = delete;

  grpc::CompletionQueue* get() { return queue_.get(); }

  // Waits for the one operation that was started. Returns whether it succeeded.
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    return queue_->Next(&tag, &ok) && ok;
  }

 private:
  IdleQueues& idle_;
  IdleQueues::Queue queue_;
};

class TimerCanceller final : public CallCanceller {
 public:
  void Cancel() override { alarm.Cancel(); }

  grpc::Alarm alarm;
};

class ContextCanceller final : public CallCanceller {
 public:
  void Cancel() override { context.TryCancel(); }

  grpc::ClientContext context;
};

// Keeps the callback threads of gRPC running until the process ends. gRPC 1.51
// ends these threads, and waits for them, when the last channel is destroyed
// that made a call with a callback. If the last reference to that channel is
// dropped in one of these threads, the thread would wait for itself, and the
// process crashes. So this makes a channel that is connected to nothing, makes
// one call on it, and never destroys it.
void KeepCallbackThreads() {
  struct Kept {
    grpc::GenericStub stub{grpc::CreateChannel("", nullptr)};
    grpc::ClientContext context;
    grpc::ByteBuffer request{nullptr, 0};  // valid, and empty
    grpc::ByteBuffer response;
  };
  // Without "used", the compiler removes the pointer, and leak checkers report
  // the memory that it points to.
  [[gnu::used]] static const Kept* const kept = [] {
    auto* made = new Kept;
    made->stub.UnaryCall(&made->context, "/none", {}, &made->request,
                         &made->response, [](const grpc::Status&) {});
    return made;
  }();
}

// Runs an exchange: writes all messages, and then reads all messages. Keeps
// itself alive until gRPC no longer uses it. The caller may keep it longer, as
// the canceller of the call.
class ExchangeReactor final
    : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
      public CallCanceller {
 public:
  ExchangeReactor(std::shared_ptr<MessageExchange> exchange,
                  std::shared_ptr<AsyncCall> call)
      : exchange_(std::move(exchange)), call_(std::move(call)) {}

  static std::shared_ptr<CallCanceller> Start(
      std::shared_ptr<ExchangeReactor> reactor, grpc::GenericStub& stub,
      const std::string& method, absl::Duration timeout) {
    SetTimeout(timeout, reactor->context_);
    reactor->self_ = reactor;
    stub.PrepareBidiStreamingCall(&reactor->context_, method, {},
                                  reactor.get());
    reactor->WriteNext();
    reactor->StartCall();
    return reactor;
  }

  void Cancel() override { context_.TryCancel(); }

  // If a message cannot be sent, the call is over. Then this reads what the
  // server has sent before, because gRPC reports the status, in OnDone, only
  // after that.
  void OnWriteDone(bool ok) override {
    ok ? WriteNext() : StartRead(&incoming_);
  }
  void OnWritesDoneDone(bool /*ok*/) override { StartRead(&incoming_); }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (wanted_ && !exchange_->OnResponse(ToMessage(incoming_))) {
      wanted_ = false;
      context_.TryCancel();
    }
    StartRead(&incoming_);
  }
  void OnDone(const grpc::Status& status) override {
    const std::shared_ptr<ExchangeReactor> self = std::move(self_);
    // The call may own this reactor, so the reactor must not own the call.
    const std::shared_ptr<AsyncCall> call = std::move(call_);
    call->OnDone(ToAbsl(status), nullptr);
    exchange_.reset();
  }

 private:
  void WriteNext() {
    if (const std::optional<OutgoingMessage> message = exchange_->Next()) {
      outgoing_ = ToByteBuffer(*message);
      StartWrite(&outgoing_);
    } else {
      StartWritesDone();
    }
  }

  grpc::ClientContext context_;
  std::shared_ptr<MessageExchange> exchange_;
  std::shared_ptr<AsyncCall> call_;
  grpc::ByteBuffer outgoing_;
  grpc::ByteBuffer incoming_;
  bool wanted_ = true;  // whether the exchange wants more messages
  std::shared_ptr<ExchangeReactor> self_;
};

int ToInt(int64_t bytes) {
  return static_cast<int>(
      std::clamp<int64_t>(bytes, 0, std::numeric_limits<int>::max()));
}

grpc::ChannelArguments MakeArguments(const ChannelLimits& limits,
                                     const std::string& service_config) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(ToInt(limits.received_bytes));
  arguments.SetMaxSendMessageSize(ToInt(limits.sent_bytes));
  // Tensors go directly to the address of the target, and not through the proxy
  // that the environment sets for web traffic.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // By default, gRPC pauses for up to two minutes before it connects again.
  // That is longer than the attempts of a call last.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // By default, gRPC also pauses too long before it looks up the addresses of
  // the target again.
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 2000);
  // In spite of its name, this is not a pause, but the time that connecting may
  // take. In 5 s, TCP can send its first packet again twice.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  // While the server computes, it sends nothing. To notice that its host or its
  // process hangs, gRPC sends a ping after each minute of silence, and expects
  // the reply within 20 s.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  if (service_config.empty()) {
    arguments.SetServiceConfigJSON(kDefaultServiceConfig);
    // RetryingChannel repeats calls. The retryPolicy in this config is for
    // other programs, which do not.
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  } else {
    arguments.SetServiceConfigJSON(service_config);
    // gRPC does not retry a request that is larger than this buffer.
    arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE,
                     ToInt(limits.sent_bytes));
  }
  SetTransportArguments(&arguments);
  return arguments;
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target,
                                           const ChannelLimits& limits,
                                           const std::string& service_config) {
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(),
                                   MakeArguments(limits, service_config));
}

// Returns whether gRPC could not make the channel. In that case it returns a
// channel that has already failed.
bool HasFailed(grpc::Channel& channel) {
  return channel.GetState(/*try_to_connect=*/false) ==
         GRPC_CHANNEL_TRANSIENT_FAILURE;
}

// Reads the messages of a stream to its end and returns the status of the call.
// Passes each message to `on_message` until that returns false, and then
// cancels the call. Reads on after that, because gRPC reports the status only
// after everything that the server has sent is read. For the same reason, call
// this even if the client could not send all of its messages.
absl::Status ReadAll(
    grpc::GenericClientAsyncReaderWriter& stream, CallQueue& queue,
    grpc::ClientContext& context,
    const std::function<bool(const ReceivedMessage&)>& on_message) {
  bool wanted = true;
  for (;;) {
    grpc::ByteBuffer message;
    stream.Read(&message, nullptr);
    if (!queue.Wait()) break;
    if (!wanted) continue;
    wanted = on_message(ToMessage(message));
    if (!wanted) context.TryCancel();
  }
  grpc::Status status;
  stream.Finish(&status, nullptr);
  queue.Wait();
  return ToAbsl(status);
}

}  // namespace

class RpcChannel::Impl {
 public:
  Impl(const std::string& target, const ChannelLimits& limits,
       const std::string& service_config) {
    const auto channel = MakeChannel(target, limits, service_config);
    // If a channel without this config has not failed, the config is the cause.
    if (!service_config.empty() && HasFailed(*channel) &&
        !HasFailed(*MakeChannel(target, limits, ""))) {
      error = FieldError("service_config",
                         "a gRPC service config as JSON (gRPC's log says what "
                         "is wrong)",
                         absl::StrCat("\"", service_config, "\""));
    }
    stub.emplace(channel);
  }

  absl::Status error;
  std::optional<grpc::GenericStub> stub;
  IdleQueues idle_queues;
};

RpcChannel::RpcChannel(const std::string& target, const ChannelLimits& limits,
                       const std::string& service_config)
    : impl_(std::make_unique<Impl>(target, limits, service_config)) {}

RpcChannel::~RpcChannel() = default;

const absl::Status& RpcChannel::error() const { return impl_->error; }

absl::Status RpcChannel::Call(
    const std::string& method, const OutgoingMessage& request,
    absl::Duration timeout,
    const std::function<void(const ReceivedMessage&)>& on_answer) {
  grpc::ClientContext context;
  SetTimeout(timeout, context);
  CallQueue queue(impl_->idle_queues);
  const auto call = impl_->stub->PrepareUnaryCall(
      &context, method, ToByteBuffer(request), queue.get());
  grpc::ByteBuffer response;
  grpc::Status status;
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  queue.Wait();
  if (status.ok()) on_answer(ToMessage(response));
  return ToAbsl(status);
}

std::shared_ptr<CallCanceller> RpcChannel::Start(
    const std::string& method, const OutgoingMessage& request,
    absl::Duration timeout, std::shared_ptr<AsyncCall> call) {
  KeepCallbackThreads();
  struct Pending {
    std::shared_ptr<AsyncCall> call;
    grpc::ByteBuffer response;
  };
  auto canceller = std::make_shared<ContextCanceller>();
  SetTimeout(timeout, canceller->context);
  auto pending = std::make_shared<Pending>();
  pending->call = std::move(call);
  const grpc::ByteBuffer message = ToByteBuffer(request);
  impl_->stub->UnaryCall(
      &canceller->context, method, {}, &message, &pending->response,
      [pending, canceller](const grpc::Status& status) {
        if (!status.ok()) return pending->call->OnDone(ToAbsl(status), nullptr);
        const ReceivedMessage answer = ToMessage(pending->response);
        pending->call->OnDone(absl::OkStatus(), &answer);
      });
  return canceller;
}

absl::Status RpcChannel::Exchange(const std::string& method,
                                  absl::Duration timeout,
                                  MessageExchange& exchange) {
  grpc::ClientContext context;
  SetTimeout(timeout, context);
  CallQueue queue(impl_->idle_queues);
  const auto stream = impl_->stub->PrepareCall(&context, method, queue.get());
  stream->StartCall(nullptr);
  bool sending = queue.Wait();
  while (sending) {
    const std::optional<OutgoingMessage> message = exchange.Next();
    if (message) {
      stream->Write(ToByteBuffer(*message), nullptr);
    } else {
      stream->WritesDone(nullptr);
    }
    sending = queue.Wait() && message;
  }
  return ReadAll(*stream, queue, context, [&](const ReceivedMessage& message) {
    return exchange.OnResponse(message);
  });
}

std::shared_ptr<CallCanceller> RpcChannel::Start(
    const std::string& method, absl::Duration timeout,
    std::shared_ptr<MessageExchange> exchange,
    std::shared_ptr<AsyncCall> call) {
  KeepCallbackThreads();
  return ExchangeReactor::Start(
      std::make_shared<ExchangeReactor>(std::move(exchange), std::move(call)),
      *impl_->stub, method, timeout);
}

void RpcChannel::Pause(absl::Duration pause, const std::stop_token& stop) {
  CallQueue queue(impl_->idle_queues);
  grpc::Alarm alarm;
  alarm.Set(queue.get(), TimeAfter(pause), nullptr);
  const std::stop_callback cancel(stop, [&alarm] { alarm.Cancel(); });
  queue.Wait();
}

std::shared_ptr<CallCanceller> RpcChannel::StartTimer(
    absl::Duration pause, std::shared_ptr<AsyncTimer> timer) {
  auto canceller = std::make_shared<TimerCanceller>();
  canceller->alarm.Set(
      TimeAfter(pause),
      [timer = std::move(timer)](bool /*passed*/) { timer->OnTimer(); });
  return canceller;
}

absl::Status RpcChannel::Stream(const std::string& method,
                                const MessageLite& request,
                                MessageLite* response, absl::Duration timeout,
                                const std::stop_token& stop,
                                const std::function<bool()>& on_response) {
  grpc::ClientContext context;
  SetTimeout(timeout, context);
  CallQueue queue(impl_->idle_queues);
  const auto stream = impl_->stub->PrepareCall(&context, method, queue.get());
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  bool wanted = true;
  bool parsed = true;
  stream->StartCall(nullptr);
  if (queue.Wait()) {
    stream->WriteLast(ToByteBuffer(OutgoingMessage::Of(request)),
                      grpc::WriteOptions(), nullptr);
    queue.Wait();
  }
  const absl::Status status =
      ReadAll(*stream, queue, context, [&](const ReceivedMessage& message) {
        ReceivedStream bytes(message);
        parsed = response->ParseFromZeroCopyStream(&bytes);
        wanted = parsed && on_response();
        return wanted;
      });
  if (!parsed) return BadResponse();
  // `status` can be OK, because the server may have ended the call before it
  // was cancelled. Then a request to stop came too late, and all responses are
  // there.
  if (!wanted || (!status.ok() && stop.stop_requested())) {
    return absl::CancelledError("the caller stopped the call");
  }
  return status;
}

}  // namespace attnd::client
