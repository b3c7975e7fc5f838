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
#include <string>
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

// Returns `status`, with a hint in its message if TLS is what failed.
absl::Status ToAbsl(const grpc::Status& status, const Access& access) {
  if (status.ok()) return absl::OkStatus();
  std::string message = status.error_message();
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    message += access.HintFor(message);
  }
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()),
                      message);
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

// Gives a call its deadline and its token. gRPC's own credentials for calls
// would not send a token in plain text, not even to a unix socket.
void Prepare(absl::Duration timeout, const Access& access,
             grpc::ClientContext& context) {
  if (access.token) {
    context.AddMetadata("authorization", access.token->Header());
  }
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
                  std::shared_ptr<AsyncCall> call,
                  std::shared_ptr<const Access> access)
      : exchange_(std::move(exchange)),
        call_(std::move(call)),
        access_(std::move(access)) {}

  static std::shared_ptr<CallCanceller> Start(
      std::shared_ptr<ExchangeReactor> reactor, grpc::GenericStub& stub,
      const std::string& method, absl::Duration timeout) {
    Prepare(timeout, *reactor->access_, reactor->context_);
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
    call->OnDone(ToAbsl(status, *access_), nullptr);
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
  const std::shared_ptr<const Access> access_;
  grpc::ByteBuffer outgoing_;
  grpc::ByteBuffer incoming_;
  bool wanted_ = true;  // whether the exchange wants more messages
  std::shared_ptr<ExchangeReactor> self_;
};

int ToInt(int64_t bytes) {
  return static_cast<int>(
      std::clamp<int64_t>(bytes, 0, std::numeric_limits<int>::max()));
}

grpc::ChannelArguments MakeArguments(const ChannelOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(ToInt(options.received_bytes));
  arguments.SetMaxSendMessageSize(ToInt(options.sent_bytes));
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
  if (!options.only_healthy) {
    arguments.SetInt(GRPC_ARG_INHIBIT_HEALTH_CHECKING, 1);
  }
  if (options.access->tls && !options.access->tls->server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.access->tls->server_name);
  }
  if (options.service_config.empty()) {
    arguments.SetServiceConfigJSON(kDefaultServiceConfig);
    // RetryingChannel repeats calls. The retryPolicy in this config is for
    // other programs, which do not.
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  } else {
    arguments.SetServiceConfigJSON(options.service_config);
    // gRPC does not retry a request that is larger than this buffer.
    arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE,
                     ToInt(options.sent_bytes));
  }
  SetTransportArguments(&arguments);
  return arguments;
}

std::shared_ptr<grpc::ChannelCredentials> MakeCredentials(
    const Access& access) {
  if (!access.tls) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = access.tls->ca;  // if empty, those of the system
  options.pem_cert_chain = access.tls->cert;
  options.pem_private_key = access.tls->key;
  return grpc::SslCredentials(options);
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
    grpc::ClientContext& context, const Access& access,
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
  return ToAbsl(status, access);
}

}  // namespace

class RpcChannel::Impl {
 public:
  explicit Impl(ChannelOptions given) : options(std::move(given)) {
    if (!options.access.ok()) {
      error = options.access.status();
      return;
    }
    access = std::make_shared<const Access>(*options.access);
    credentials = MakeCredentials(*access);
    const auto channel = MakeChannel(options);
    // If a channel without this config has not failed, the config is the cause.
    if (!options.service_config.empty() && HasFailed(*channel)) {
      ChannelOptions without_config = options;
      without_config.service_config.clear();
      if (!HasFailed(*MakeChannel(without_config))) {
        error =
            FieldError("service_config",
                       "a gRPC service config as JSON (gRPC's log says what "
                       "is wrong)",
                       absl::StrCat("\"", options.service_config, "\""));
      }
    }
    stub.emplace(channel);
  }
  // Makes a channel that shares the connections of `other`. gRPC shares them
  // between channels that have the same credentials.
  Impl(const Impl& other, bool only_healthy)
      : options(other.options),
        access(other.access),
        credentials(other.credentials) {
    options.only_healthy = only_healthy;
    stub.emplace(MakeChannel(options));
  }

  std::shared_ptr<grpc::Channel> MakeChannel(
      const ChannelOptions& wanted) const {
    return grpc::CreateCustomChannel(wanted.target, credentials,
                                     MakeArguments(wanted));
  }

  ChannelOptions options;
  absl::Status error;
  std::shared_ptr<const Access> access;
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  std::optional<grpc::GenericStub> stub;
  IdleQueues idle_queues;
  std::once_flag for_any_health_made;
  std::unique_ptr<RpcChannel> for_any_health;
};

RpcChannel::RpcChannel(ChannelOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}

RpcChannel::RpcChannel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

RpcChannel::~RpcChannel() = default;

const absl::Status& RpcChannel::error() const { return impl_->error; }

RpcChannel& RpcChannel::ForAnyHealth() {
  if (!impl_->options.only_healthy || !impl_->error.ok()) return *this;
  std::call_once(impl_->for_any_health_made, [this] {
    impl_->for_any_health.reset(
        new RpcChannel(std::make_unique<Impl>(*impl_, false)));
  });
  return *impl_->for_any_health;
}

absl::Status RpcChannel::Call(
    const std::string& method, const OutgoingMessage& request,
    absl::Duration timeout,
    const std::function<void(const ReceivedMessage&)>& on_answer) {
  grpc::ClientContext context;
  Prepare(timeout, *impl_->access, context);
  CallQueue queue(impl_->idle_queues);
  const auto call = impl_->stub->PrepareUnaryCall(
      &context, method, ToByteBuffer(request), queue.get());
  grpc::ByteBuffer response;
  grpc::Status status;
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  queue.Wait();
  if (status.ok()) on_answer(ToMessage(response));
  return ToAbsl(status, *impl_->access);
}

std::shared_ptr<CallCanceller> RpcChannel::Start(
    const std::string& method, const OutgoingMessage& request,
    absl::Duration timeout, std::shared_ptr<AsyncCall> call) {
  KeepCallbackThreads();
  struct Pending {
    std::shared_ptr<AsyncCall> call;
    std::shared_ptr<const Access> access;
    grpc::ByteBuffer response;
  };
  auto canceller = std::make_shared<ContextCanceller>();
  Prepare(timeout, *impl_->access, canceller->context);
  auto pending = std::make_shared<Pending>();
  pending->call = std::move(call);
  pending->access = impl_->access;
  const grpc::ByteBuffer message = ToByteBuffer(request);
  impl_->stub->UnaryCall(
      &canceller->context, method, {}, &message, &pending->response,
      [pending, canceller](const grpc::Status& status) {
        if (!status.ok()) {
          return pending->call->OnDone(ToAbsl(status, *pending->access),
                                       nullptr);
        }
        const ReceivedMessage answer = ToMessage(pending->response);
        pending->call->OnDone(absl::OkStatus(), &answer);
      });
  return canceller;
}

absl::Status RpcChannel::Exchange(const std::string& method,
                                  absl::Duration timeout,
                                  MessageExchange& exchange) {
  grpc::ClientContext context;
  Prepare(timeout, *impl_->access, context);
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
  return ReadAll(*stream, queue, context, *impl_->access,
                 [&](const ReceivedMessage& message) {
                   return exchange.OnResponse(message);
                 });
}

std::shared_ptr<CallCanceller> RpcChannel::Start(
    const std::string& method, absl::Duration timeout,
    std::shared_ptr<MessageExchange> exchange,
    std::shared_ptr<AsyncCall> call) {
  KeepCallbackThreads();
  return ExchangeReactor::Start(
      std::make_shared<ExchangeReactor>(std::move(exchange), std::move(call),
                                        impl_->access),
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
  Prepare(timeout, *impl_->access, context);
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
      ReadAll(*stream, queue, context, *impl_->access,
              [&](const ReceivedMessage& message) {
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
