#include "client/forward_call.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "attnd/v1/attention.pb.h"
#include "base/status_macros.h"
#include "client/answer_reader.h"
#include "client/attention_exchange.h"
#include "client/inline_call.h"
#include "wire/method_names.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::client {
namespace {

AttentionExchange MakeExchange(const ForwardCall& call,
                               const MessageLimits& limits,
                               int64_t max_message_bytes) {
  return AttentionExchange(
      call.inputs, call.options, OptionsFrom(call.outputs), call.outputs,
      std::min(
          {limits.request_bytes, limits.response_bytes, max_message_bytes}));
}

absl::StatusOr<AttentionReply> CallInline(const RetryingChannel& channel,
                                          const ForwardCall& call,
                                          const OutgoingMessage& request,
                                          int64_t max_message_bytes,
                                          const CallTime& time) {
  ATTND_RETURN_IF_ERROR(CheckSize(request, max_message_bytes));
  absl::StatusOr<AttentionReply> reply;
  ATTND_RETURN_IF_ERROR(channel.Call(
      NameOf(call.method), request, time, [&](const ReceivedMessage& answer) {
        reply = ReadReply(answer,
                          AnswerTo(call.inputs, call.options, call.outputs));
      }));
  return reply;
}

absl::StatusOr<AttentionReply> CallWithLimits(const MessageLimits& limits,
                                              const RetryingChannel& channel,
                                              const ForwardCall& call,
                                              const OutgoingMessage& request,
                                              int64_t max_message_bytes,
                                              const CallTime& time) {
  if (!MustStream(request, call.outputs, limits, max_message_bytes)) {
    return CallInline(channel, call, request, max_message_bytes, time);
  }
  AttentionExchange exchange = MakeExchange(call, limits, max_message_bytes);
  const absl::Status status =
      channel.Exchange(method::kAttentionStream, time, exchange);
  return exchange.Reply(status);
}

// An asynchronous call that streams.
class StreamedCall final : public AsyncExchange {
 public:
  StreamedCall(AttentionExchange exchange, ForwardDone done)
      : exchange_(std::move(exchange)), done_(std::move(done)) {}

  std::optional<OutgoingMessage> Next() override { return exchange_.Next(); }
  bool OnResponse(const ReceivedMessage& message) override {
    return exchange_.OnResponse(message);
  }
  bool Restart() override { return exchange_.Restart(); }
  void OnDone(const absl::Status& status) override {
    done_(exchange_.Reply(status));
  }

 private:
  AttentionExchange exchange_;
  ForwardDone done_;
};

std::shared_ptr<CallCanceller> StartInline(const RetryingChannel& channel,
                                           const ForwardCall& call,
                                           OutgoingMessage request,
                                           int64_t max_message_bytes,
                                           const CallTime& time,
                                           ForwardDone done) {
  if (absl::Status status = CheckSize(request, max_message_bytes);
      !status.ok()) {
    done(std::move(status));
    return nullptr;
  }
  return channel.Start(
      NameOf(call.method), std::move(request), time,
      std::make_unique<InlineCall<ForwardAnswer, ForwardDone>>(
          AnswerTo(call.inputs, call.options, call.outputs), std::move(done)));
}

// A copy of the arguments of a call, for a call that takes longer than they
// exist.
struct OwnedCall {
  Method method;
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionOptions options;

  ForwardCall Borrowed() const { return {method, inputs, outputs, options}; }
};

// Returns `elements`, or a copy of them if they have no owner.
ConstElements CopyIfBorrowed(const ConstElements& elements) {
  if (elements.owner() != nullptr || elements.bytes().empty()) return elements;
  const auto copy = std::make_shared<const std::vector<std::byte>>(
      elements.bytes().begin(), elements.bytes().end());
  return ConstElements(elements.type(), *copy).OwnedBy(copy);
}

OwnedCall CopyIfBorrowed(const ForwardCall& borrowed) {
  OwnedCall call{borrowed.method, borrowed.inputs, borrowed.outputs,
                 borrowed.options};
  AttentionInputs& inputs = call.inputs;
  const auto copy = [](ConstTensor& tensor) {
    tensor.data = CopyIfBorrowed(tensor.data);
  };
  // The method says which inputs are the same tensor. Such a tensor is copied
  // once.
  copy(inputs.query);
  if (call.method == Method::kSelfAttention) {
    inputs.key = inputs.query;
  } else {
    copy(inputs.key);
  }
  if (call.method == Method::kAttention) {
    copy(inputs.value);
  } else {
    inputs.value = inputs.key;
  }
  if (call.options.bias) copy(*call.options.bias);
  if (call.options.mask) copy(*call.options.mask);
  return call;
}

std::shared_ptr<CallCanceller> StartWithLimits(
    const MessageLimits& limits, const RetryingChannel& channel,
    const ForwardCall& call, OutgoingMessage request, int64_t max_message_bytes,
    const CallTime& time, ForwardDone done) {
  if (!MustStream(request, call.outputs, limits, max_message_bytes)) {
    return StartInline(channel, call, std::move(request), max_message_bytes,
                       time, std::move(done));
  }
  return channel.Start(method::kAttentionStream, time,
                       std::make_unique<StreamedCall>(
                           MakeExchange(CopyIfBorrowed(call).Borrowed(), limits,
                                        max_message_bytes),
                           std::move(done)));
}

// Cancels all calls that are added to it, whether before or after Cancel.
// Thread-safe.
class ChainCanceller final : public CallCanceller {
 public:
  void Cancel() override {
    std::vector<std::shared_ptr<CallCanceller>> calls;
    {
      const std::lock_guard lock(mutex_);
      cancelled_ = true;
      calls = calls_;
    }
    for (const auto& call : calls) call->Cancel();
  }
  void Add(const std::shared_ptr<CallCanceller>& call) {
    if (call == nullptr) return;
    bool cancelled = false;
    {
      const std::lock_guard lock(mutex_);
      calls_.push_back(call);
      cancelled = cancelled_;
    }
    if (cancelled) call->Cancel();
  }

 private:
  std::mutex mutex_;
  bool cancelled_ = false;
  std::vector<std::shared_ptr<CallCanceller>> calls_;
};

// Asks the server for its limits, and then makes the call.
class AskingCall final : public AsyncCall {
 public:
  struct State {
    std::shared_ptr<RetryingChannel> channel;
    std::shared_ptr<ServerLimits> server;
    std::shared_ptr<ChainCanceller> canceller;
    OwnedCall call;
    int64_t max_message_bytes;
    CallTime time;
    ForwardDone done;
  };
  explicit AskingCall(State state) : state_(std::move(state)) {}

  void OnDone(const absl::Status& status,
              const ReceivedMessage* answer) override {
    const absl::StatusOr<MessageLimits> limits =
        state_.server->Take(status.ok() ? ReadServerInfo(*answer)
                                        : absl::StatusOr<ServerInfo>(status));
    if (!limits.ok()) {
      state_.done(limits.status());
      return;
    }
    const ForwardCall call = state_.call.Borrowed();
    state_.canceller->Add(StartWithLimits(
        *limits, *state_.channel, call, EncodeForward(call),
        state_.max_message_bytes, state_.time, std::move(state_.done)));
  }

 private:
  State state_;
};

}  // namespace

absl::StatusOr<ServerInfo> AskServer(const RetryingChannel& channel,
                                     const CallTime& time) {
  absl::StatusOr<ServerInfo> info;
  ATTND_RETURN_IF_ERROR(channel.Call(
      method::kGetServerInfo, OutgoingMessage::Of(v1::GetServerInfoRequest()),
      time,
      [&](const ReceivedMessage& answer) { info = ReadServerInfo(answer); }));
  return info;
}

absl::StatusOr<AttentionReply> CallForward(const RetryingChannel& channel,
                                           ServerLimits& server,
                                           const ForwardCall& call,
                                           const ClientOptions& options) {
  ATTND_RETURN_IF_ERROR(CheckOutputSizes(call));
  const auto time = CallTime::From(options.deadline);
  const int64_t max_message_bytes = options.max_message_bytes;
  const OutgoingMessage request = EncodeForward(call);
  if (IsInline(call, request)) {
    return CallInline(channel, call, request, max_message_bytes, time);
  }
  const auto call_with_limits = [&](const MessageLimits& limits) {
    return CallWithLimits(limits, channel, call, request, max_message_bytes,
                          time);
  };
  const std::optional<MessageLimits> known = server.Get();
  if (!known) {
    ATTND_ASSIGN_OR_RETURN(const MessageLimits limits,
                           server.Take(AskServer(channel, time)));
    return call_with_limits(limits);
  }
  absl::StatusOr<AttentionReply> reply = call_with_limits(*known);
  if (!MayHaveOtherLimits(reply.status())) return reply;
  const absl::StatusOr<MessageLimits> current =
      server.Take(AskServer(channel, time));
  if (!current.ok() || *current == *known) return reply;
  return call_with_limits(*current);
}

PendingCall StartForward(const std::shared_ptr<RetryingChannel>& channel,
                         const std::shared_ptr<ServerLimits>& server,
                         const ForwardCall& call, const ClientOptions& options,
                         ForwardDone done) {
  if (absl::Status status = CheckOutputSizes(call); !status.ok()) {
    done(std::move(status));
    return {};
  }
  const auto time = CallTime::From(options.deadline);
  const int64_t max_message_bytes = options.max_message_bytes;
  OutgoingMessage request = EncodeForward(call);
  if (IsInline(call, request)) {
    return PendingCall(StartInline(*channel, call, std::move(request),
                                   max_message_bytes, time, std::move(done)));
  }
  if (const std::optional<MessageLimits> limits = server->Get()) {
    // If the server has other limits by now, the call fails. It cannot be
    // encoded again, because the caller may have freed its elements.
    return PendingCall(StartWithLimits(
        *limits, *channel, call, std::move(request), max_message_bytes, time,
        [server, done = std::move(done)](const auto& reply) {
          if (MayHaveOtherLimits(reply.status())) server->Forget();
          done(reply);
        }));
  }
  auto canceller = std::make_shared<ChainCanceller>();
  canceller->Add(
      channel->Start(method::kGetServerInfo,
                     OutgoingMessage::Of(v1::GetServerInfoRequest()), time,
                     std::make_unique<AskingCall>(AskingCall::State{
                         channel, server, canceller, CopyIfBorrowed(call),
                         max_message_bytes, time, std::move(done)})));
  return PendingCall(canceller);
}

}  // namespace attnd::client
