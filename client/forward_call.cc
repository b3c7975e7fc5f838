#include "client/forward_call.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "attnd/v1/attention.pb.h"
#include "client/answer_reader.h"
#include "client/attention_exchange.h"
#include "client/inline_call.h"
#include "client/outgoing_message.h"
#include "google/protobuf/io/zero_copy_stream.h"

namespace attnd::client {
namespace {

using google::protobuf::io::ZeroCopyInputStream;

constexpr char kAttentionStream[] =
    "/attnd.v1.AttentionService/AttentionStream";
constexpr char kGetServerInfo[] = "/attnd.v1.AttentionService/GetServerInfo";

AttentionExchange MakeExchange(const ForwardCall& call,
                               const MessageLimits& limits,
                               int64_t max_message_bytes) {
  return AttentionExchange(
      call.inputs, call.options, AskedBy(call.outputs), call.outputs,
      std::min(
          {limits.request_bytes, limits.response_bytes, max_message_bytes}));
}

absl::StatusOr<AttentionReply> CallInline(RpcChannel& channel,
                                          const ForwardCall& call,
                                          const OutgoingMessage& request,
                                          const ClientOptions& client) {
  if (absl::Status status = CheckSize(request, client.max_message_bytes);
      !status.ok()) {
    return status;
  }
  absl::StatusOr<AttentionReply> reply;
  const absl::Status status = channel.Call(
      NameOf(call.method), request, client.deadline,
      [&](ZeroCopyInputStream* answer) {
        reply = ReadReply(answer,
                          AnswerTo(call.inputs, call.options, call.outputs));
      });
  if (!status.ok()) return status;
  return reply;
}

absl::StatusOr<MessageLimits> AskLimits(RpcChannel& channel,
                                        ServerLimits& server,
                                        ClientOptions& client) {
  const absl::Time start = absl::Now();
  absl::StatusOr<MessageLimits> limits =
      server.Take(AskServer(channel, client.deadline));
  client.deadline -= absl::Now() - start;
  return limits;
}

absl::StatusOr<AttentionReply> CallKnowing(const MessageLimits& limits,
                                           RpcChannel& channel,
                                           const ForwardCall& call,
                                           const OutgoingMessage& request,
                                           const ClientOptions& client) {
  if (!MustStream(request, call.outputs, limits, client.max_message_bytes)) {
    return CallInline(channel, call, request, client);
  }
  AttentionExchange exchange =
      MakeExchange(call, limits, client.max_message_bytes);
  const absl::Status status =
      channel.Exchange(kAttentionStream, client.deadline, exchange);
  return exchange.Reply(status);
}

// A stream that nobody waits for. gRPC orders the calls by itself, but with
// locks that thread sanitizer cannot watch.
class StreamedCall final : public AsyncExchange {
 public:
  StreamedCall(AttentionExchange exchange, ForwardDone done)
      : exchange_(std::move(exchange)), done_(std::move(done)) {}

  std::optional<OutgoingMessage> Next() override {
    const std::lock_guard lock(mutex_);
    return exchange_.Next();
  }
  bool OnResponse(ZeroCopyInputStream* message) override {
    const std::lock_guard lock(mutex_);
    return exchange_.OnResponse(message);
  }
  void OnDone(const absl::Status& status) override {
    absl::StatusOr<AttentionReply> reply;
    {
      const std::lock_guard lock(mutex_);
      reply = exchange_.Reply(status);
    }
    done_(std::move(reply));
  }

 private:
  std::mutex mutex_;
  AttentionExchange exchange_;
  ForwardDone done_;
};

std::shared_ptr<CallCanceller> StartInline(RpcChannel& channel,
                                           const ForwardCall& call,
                                           const OutgoingMessage& request,
                                           const ClientOptions& client,
                                           ForwardDone done) {
  if (absl::Status status = CheckSize(request, client.max_message_bytes);
      !status.ok()) {
    done(std::move(status));
    return nullptr;
  }
  auto pending = std::make_unique<InlineCall<ForwardAnswer, ForwardDone>>(
      AnswerTo(call.inputs, call.options, call.outputs), std::move(done));
  pending->Publish();
  return channel.Start(NameOf(call.method), request, client.deadline,
                       std::move(pending));
}

// Elements that the caller may take away are copied.
void Own(ConstElements& elements) {
  if (elements.owner() != nullptr || elements.bytes().empty()) return;
  const auto copy = std::make_shared<const std::vector<std::byte>>(
      elements.bytes().begin(), elements.bytes().end());
  elements = ConstElements(elements.type(), *copy).OwnedBy(copy);
}

// A call that outlives its caller's arguments.
struct OwnedCall {
  Method method;
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionOptions options;

  ForwardCall Borrowed() const { return {method, inputs, outputs, options}; }
};

OwnedCall Owned(const ForwardCall& borrowed) {
  OwnedCall call{borrowed.method, borrowed.inputs, borrowed.outputs,
                 borrowed.options};
  AttentionInputs& inputs = call.inputs;
  // Before the copies: what is the same tensor stays so.
  const bool self = call.method == Method::kSelfAttention;
  const bool cross = call.method == Method::kCrossAttention;
  Own(inputs.query.data);
  if (self) inputs.key = inputs.query;
  Own(inputs.key.data);
  if (self || cross) inputs.value = inputs.key;
  Own(inputs.value.data);
  if (call.options.bias) Own(call.options.bias->data);
  if (call.options.mask) Own(call.options.mask->data);
  return call;
}

std::shared_ptr<CallCanceller> StartKnowing(const MessageLimits& limits,
                                            RpcChannel& channel,
                                            const ForwardCall& call,
                                            const OutgoingMessage& request,
                                            const ClientOptions& client,
                                            ForwardDone done) {
  if (!MustStream(request, call.outputs, limits, client.max_message_bytes)) {
    return StartInline(channel, call, request, client, std::move(done));
  }
  return channel.Start(kAttentionStream, client.deadline,
                       std::make_unique<StreamedCall>(
                           MakeExchange(Owned(call).Borrowed(), limits,
                                        client.max_message_bytes),
                           std::move(done)));
}

// Stops all of several calls, which may be added after it, in any order.
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
    std::shared_ptr<RpcChannel> channel;
    std::shared_ptr<ServerLimits> server;
    std::shared_ptr<ChainCanceller> canceller;
    OwnedCall call;
    ClientOptions client;
    ForwardDone done;
    absl::Time start = absl::Now();
  };
  explicit AskingCall(State state) : state_(std::move(state)) {}

  void OnDone(const absl::Status& status,
              ZeroCopyInputStream* answer) override {
    const std::lock_guard lock(mutex_);
    const absl::StatusOr<MessageLimits> limits =
        state_.server->Take(status.ok() ? ReadServerInfo(answer)
                                        : absl::StatusOr<ServerInfo>(status));
    if (!limits.ok()) {
      state_.done(limits.status());
      return;
    }
    state_.client.deadline -= absl::Now() - state_.start;
    const ForwardCall call = state_.call.Borrowed();
    state_.canceller->Add(StartKnowing(*limits, *state_.channel, call,
                                       EncodeForward(call), state_.client,
                                       std::move(state_.done)));
  }

  // As in StreamedCall.
  void Publish() { const std::lock_guard lock(mutex_); }

 private:
  std::mutex mutex_;
  State state_;
};

}  // namespace

absl::StatusOr<ServerInfo> AskServer(RpcChannel& channel,
                                     absl::Duration deadline) {
  absl::StatusOr<ServerInfo> info;
  const absl::Status status = channel.Call(
      kGetServerInfo, OutgoingMessage::Of(v1::GetServerInfoRequest()), deadline,
      [&](ZeroCopyInputStream* answer) { info = ReadServerInfo(answer); });
  if (!status.ok()) return status;
  return info;
}

absl::StatusOr<AttentionReply> CallForward(RpcChannel& channel,
                                           ServerLimits& server,
                                           const ForwardCall& call,
                                           const ClientOptions& options) {
  if (absl::Status status = CheckRooms(call); !status.ok()) return status;
  const OutgoingMessage request = EncodeForward(call);
  if (IsInline(call, request)) {
    return CallInline(channel, call, request, options);
  }
  ClientOptions client = options;
  const std::optional<MessageLimits> known = server.Get();
  if (!known) {
    const absl::StatusOr<MessageLimits> asked =
        AskLimits(channel, server, client);
    if (!asked.ok()) return asked.status();
    return CallKnowing(*asked, channel, call, request, client);
  }
  const absl::Time start = absl::Now();
  absl::StatusOr<AttentionReply> reply =
      CallKnowing(*known, channel, call, request, client);
  if (!MayHaveOtherLimits(reply.status())) return reply;
  client.deadline -= absl::Now() - start;
  const absl::StatusOr<MessageLimits> asked =
      AskLimits(channel, server, client);
  if (!asked.ok() || *asked == *known) return reply;
  return CallKnowing(*asked, channel, call, request, client);
}

PendingCall StartForward(const std::shared_ptr<RpcChannel>& channel,
                         const std::shared_ptr<ServerLimits>& server,
                         const ForwardCall& call, const ClientOptions& client,
                         ForwardDone done) {
  if (absl::Status status = CheckRooms(call); !status.ok()) {
    done(std::move(status));
    return {};
  }
  const OutgoingMessage request = EncodeForward(call);
  if (IsInline(call, request)) {
    return PendingCall(
        StartInline(*channel, call, request, client, std::move(done)));
  }
  if (const std::optional<MessageLimits> limits = server->Get()) {
    // The call is not made again, for its elements may be gone.
    return PendingCall(
        StartKnowing(*limits, *channel, call, request, client,
                     [server, done = std::move(done)](const auto& reply) {
                       if (MayHaveOtherLimits(reply.status())) server->Forget();
                       done(reply);
                     }));
  }
  auto canceller = std::make_shared<ChainCanceller>();
  auto asking = std::make_unique<AskingCall>(AskingCall::State{
      channel, server, canceller, Owned(call), client, std::move(done)});
  asking->Publish();
  canceller->Add(channel->Start(kGetServerInfo,
                                OutgoingMessage::Of(v1::GetServerInfoRequest()),
                                client.deadline, std::move(asking)));
  return PendingCall(canceller);
}

}  // namespace attnd::client
