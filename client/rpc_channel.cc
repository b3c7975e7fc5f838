#include "client/rpc_channel.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/client_callback.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "client/error_details.h"
#include "client/outgoing_message.h"
#include "google/protobuf/io/zero_copy_stream.h"
#include "google/protobuf/message_lite.h"
#include "proto/message_pieces.h"
#include "proto/transport_arguments.h"

namespace attnd::client {
namespace {

using google::protobuf::MessageLite;
using google::protobuf::io::ZeroCopyInputStream;

absl::Status ToAbsl(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
  if (!status.error_details().empty()) {
    result.SetPayload(kStatusPayloadUrl, absl::Cord(status.error_details()));
  }
  return result;
}

// What is owned is sent from where it lies; the rest is copied.
grpc::ByteBuffer ToByteBuffer(const OutgoingMessage& message) {
  std::vector<grpc::Slice> slices;
  slices.reserve(message.pieces().size() + 1);
  for (const OutgoingMessage::Piece& piece : message.pieces()) {
    const std::span<const std::byte> data = piece.elements.bytes();
    if (!piece.text.empty()) {
      slices.emplace_back(piece.text);
    } else if (piece.elements.owner() != nullptr) {
      slices.emplace_back(const_cast<std::byte*>(data.data()), data.size(),
                          Drop, Hold(piece.elements.owner()));
    } else {
      slices.emplace_back(data.data(), data.size());
    }
  }
  // A buffer of no slices would be no message.
  if (slices.empty()) slices.emplace_back();
  return {slices.data(), slices.size()};
}

void SetDeadline(absl::Duration deadline, grpc::ClientContext& context) {
  if (deadline == absl::InfiniteDuration()) return;
  // Beyond this the sum could overflow, and nobody waits.
  constexpr absl::Duration kLongest = absl::Hours(24 * 365);
  // The system's clock itself: Abseil's keeps the processor's in step with it,
  // which is more code than a small call has use for.
  context.set_deadline(
      std::chrono::system_clock::now() +
      absl::ToChronoMicroseconds(std::min(deadline, kLongest)));
}

// Queues that no call uses: making one and shutting it down costs a small call
// some microseconds. Thread-safe.
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
  std::vector<Queue> queues_;  // as many as calls were waited for at once
};

// One call's own queue, waited on by the thread that makes the call. Whatever
// was started must have been waited for when it goes.
class CallQueue {
 public:
  explicit CallQueue(IdleQueues& idle) : idle_(idle), queue_(idle.Take()) {}
  ~CallQueue() { idle_.Put(std::move(queue_)); }
  CallQueue(const CallQueue&) = delete;
  CallQueue& operator=(const CallQueue&) = delete;

  grpc::CompletionQueue* get() { return queue_.get(); }

  // Waits for the one operation that was started; false where it failed.
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    return queue_->Next(&tag, &ok) && ok;
  }

 private:
  IdleQueues& idle_;
  IdleQueues::Queue queue_;
};

class ContextCanceller final : public CallCanceller {
 public:
  void Cancel() override { context.TryCancel(); }

  grpc::ClientContext context;
};

// gRPC 1.51 ends its callback threads, and waits for them, when the last
// channel goes that made a call with a callback. Where a call is the last to
// hold its channel, that is in such a thread itself, and crashes. So one
// channel that is connected to nothing, and one call on it, stay as long as the
// process.
void KeepCallbackThreads() {
  struct Kept {
    grpc::GenericStub stub{grpc::CreateChannel("", nullptr)};
    grpc::ClientContext context;
    grpc::ByteBuffer request{nullptr, 0};  // valid, and empty
    grpc::ByteBuffer response;
  };
  // "used": or the pointer is optimised away, and what it keeps looks leaked.
  [[gnu::used]] static const Kept* const kept = [] {
    auto* made = new Kept;
    made->stub.UnaryCall(&made->context, "/none", {}, &made->request,
                         &made->response, [](const grpc::Status&) {});
    return made;
  }();
}

// Writes all, then reads all. Owns itself until gRPC is done with it, and is
// kept as a canceller beyond that.
class ExchangeReactor final
    : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
      public CallCanceller {
 public:
  explicit ExchangeReactor(std::unique_ptr<AsyncExchange> exchange)
      : exchange_(std::move(exchange)) {}

  static std::shared_ptr<CallCanceller> Start(
      std::shared_ptr<ExchangeReactor> reactor, grpc::GenericStub& stub,
      const std::string& method, absl::Duration deadline) {
    SetDeadline(deadline, reactor->context_);
    reactor->self_ = reactor;
    stub.PrepareBidiStreamingCall(&reactor->context_, method, {},
                                  reactor.get());
    reactor->WriteNext();
    reactor->StartCall();
    return reactor;
  }

  void Cancel() override { context_.TryCancel(); }

  // Where a message cannot be sent, the call is over, and OnDone says why once
  // what was answered before that is read: gRPC keeps the status back till
  // then.
  void OnWriteDone(bool ok) override {
    ok ? WriteNext() : StartRead(&incoming_);
  }
  void OnWritesDoneDone(bool /*ok*/) override { StartRead(&incoming_); }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    grpc::ProtoBufferReader reader(&incoming_);
    if (wanted_ && !exchange_->OnResponse(&reader)) {
      wanted_ = false;
      context_.TryCancel();
    }
    StartRead(&incoming_);
  }
  void OnDone(const grpc::Status& status) override {
    const std::shared_ptr<ExchangeReactor> self = std::move(self_);
    exchange_->OnDone(ToAbsl(status));
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
  std::unique_ptr<AsyncExchange> exchange_;
  grpc::ByteBuffer outgoing_;
  grpc::ByteBuffer incoming_;
  bool wanted_ = true;
  std::shared_ptr<ExchangeReactor> self_;
};

grpc::ChannelArguments MakeArguments(int64_t max_message_bytes) {
  const int limit = static_cast<int>(std::clamp<int64_t>(
      max_message_bytes, 0, std::numeric_limits<int>::max()));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(limit);
  arguments.SetMaxSendMessageSize(limit);
  // Tensors go to the address that was asked for, never to the proxy that the
  // environment names for web traffic.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  SetTransportArguments(&arguments);
  return arguments;
}

}  // namespace

class RpcChannel::Impl {
 public:
  Impl(const std::string& target, int64_t max_message_bytes)
      : stub(grpc::CreateCustomChannel(target,
                                       grpc::InsecureChannelCredentials(),
                                       MakeArguments(max_message_bytes))) {}

  grpc::GenericStub stub;
  IdleQueues idle_queues;
};

RpcChannel::RpcChannel(const std::string& target, int64_t max_message_bytes)
    : impl_(std::make_unique<Impl>(target, max_message_bytes)) {}

RpcChannel::~RpcChannel() = default;

absl::Status RpcChannel::Call(
    const std::string& method, const OutgoingMessage& request,
    absl::Duration deadline,
    const std::function<void(ZeroCopyInputStream*)>& on_answer) {
  grpc::ClientContext context;
  SetDeadline(deadline, context);
  CallQueue queue(impl_->idle_queues);
  const auto call = impl_->stub.PrepareUnaryCall(
      &context, method, ToByteBuffer(request), queue.get());
  grpc::ByteBuffer response;
  grpc::Status status;
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  queue.Wait();
  if (status.ok()) {
    grpc::ProtoBufferReader answer(&response);
    on_answer(&answer);
  }
  return ToAbsl(status);
}

absl::Status RpcChannel::Call(const std::string& method,
                              const MessageLite& request,
                              absl::Duration deadline, MessageLite* response) {
  bool parsed = true;
  const absl::Status status =
      Call(method, OutgoingMessage::Of(request), deadline,
           [&](ZeroCopyInputStream* answer) {
             parsed = response->ParseFromZeroCopyStream(answer);
           });
  return parsed ? status : BadResponse();
}

std::shared_ptr<CallCanceller> RpcChannel::Start(
    const std::string& method, const OutgoingMessage& request,
    absl::Duration deadline, std::unique_ptr<AsyncCall> call) {
  KeepCallbackThreads();
  struct Pending {
    std::unique_ptr<AsyncCall> call;
    grpc::ByteBuffer response;
  };
  auto canceller = std::make_shared<ContextCanceller>();
  SetDeadline(deadline, canceller->context);
  auto pending = std::make_shared<Pending>();
  pending->call = std::move(call);
  const grpc::ByteBuffer message = ToByteBuffer(request);
  impl_->stub.UnaryCall(
      &canceller->context, method, {}, &message, &pending->response,
      [pending, canceller](const grpc::Status& status) {
        if (!status.ok()) return pending->call->OnDone(ToAbsl(status), nullptr);
        grpc::ProtoBufferReader answer(&pending->response);
        pending->call->OnDone(absl::OkStatus(), &answer);
      });
  return canceller;
}

absl::Status RpcChannel::Exchange(const std::string& method,
                                  absl::Duration deadline,
                                  MessageExchange& exchange) {
  grpc::ClientContext context;
  SetDeadline(deadline, context);
  CallQueue queue(impl_->idle_queues);
  const auto stream = impl_->stub.PrepareCall(&context, method, queue.get());
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
  // Also where not all could be sent: gRPC keeps the status back until what was
  // answered before it is read.
  bool wanted = true;
  for (;;) {
    grpc::ByteBuffer response;
    stream->Read(&response, nullptr);
    if (!queue.Wait()) break;
    if (!wanted) continue;
    grpc::ProtoBufferReader reader(&response);
    wanted = exchange.OnResponse(&reader);
    if (!wanted) context.TryCancel();
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  queue.Wait();
  return ToAbsl(status);
}

std::shared_ptr<CallCanceller> RpcChannel::Start(
    const std::string& method, absl::Duration deadline,
    std::unique_ptr<AsyncExchange> exchange) {
  KeepCallbackThreads();
  return ExchangeReactor::Start(
      std::make_shared<ExchangeReactor>(std::move(exchange)), impl_->stub,
      method, deadline);
}

absl::Status RpcChannel::Stream(const std::string& method,
                                const MessageLite& request,
                                MessageLite* response, absl::Duration deadline,
                                const std::function<bool()>& on_response) {
  grpc::ClientContext context;
  SetDeadline(deadline, context);
  CallQueue queue(impl_->idle_queues);
  const auto stream = impl_->stub.PrepareCall(&context, method, queue.get());
  bool wanted = true;
  bool parsed = true;
  stream->StartCall(nullptr);
  if (queue.Wait()) {
    stream->WriteLast(ToByteBuffer(OutgoingMessage::Of(request)),
                      grpc::WriteOptions(), nullptr);
    if (queue.Wait()) {
      for (;;) {
        grpc::ByteBuffer message;
        stream->Read(&message, nullptr);
        if (!queue.Wait()) break;
        if (!wanted) continue;
        grpc::ProtoBufferReader reader(&message);
        parsed = response->ParseFromZeroCopyStream(&reader);
        wanted = parsed && on_response();
        if (!wanted) context.TryCancel();
      }
    }
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  queue.Wait();
  if (!parsed) return BadResponse();
  // The end may have been on its way already when the call was cancelled.
  if (!wanted) return absl::CancelledError("the caller stopped the call");
  return ToAbsl(status);
}

}  // namespace attnd::client
