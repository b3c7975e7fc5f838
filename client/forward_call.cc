#include "client/forward_call.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attnd/v1/attention.pb.h"
#include "client/answer_reader.h"
#include "client/attention_exchange.h"
#include "client/error_details.h"
#include "client/inline_call.h"
#include "client/outgoing_message.h"
#include "client/request_encoder.h"
#include "google/protobuf/io/zero_copy_stream.h"
#include "proto/message_pieces.h"

namespace attnd::client {
namespace {

constexpr char kAttentionStream[] =
    "/attnd.v1.AttentionService/AttentionStream";
constexpr char kGetServerInfo[] = "/attnd.v1.AttentionService/GetServerInfo";

// Where the server itself writes the answer, it must fit before it is made.
absl::Status CheckRoom(const Elements& target, const char* name,
                       const std::vector<int64_t>& shape) {
  const auto count = ElementCount(shape);
  const auto room =
      static_cast<int64_t>(target.bytes().size()) / SizeOf(target.type());
  if (!target.place() || !count || *count == room) return absl::OkStatus();
  return FieldError(name, absl::StrCat("room for ", *count, " elements"),
                    absl::StrCat("room for ", room));
}

// What a forward method's outputs ask for.
v1::AttentionOptions AskedBy(const AttentionOutputs& outputs) {
  v1::AttentionOptions asked;
  asked.set_return_lse(outputs.lse.has_value());
  asked.set_output_dtype(EncodeType(outputs.output.type()));
  if (outputs.output.place()) {
    EncodePlace(*outputs.output.place(), asked.mutable_output_region());
  }
  if (outputs.lse && outputs.lse->place()) {
    EncodePlace(*outputs.lse->place(), asked.mutable_lse_region());
  }
  return asked;
}
const char* NameOf(Method method) {
  switch (method) {
    case Method::kAttention:
      return "/attnd.v1.AttentionService/Attention";
    case Method::kSelfAttention:
      return "/attnd.v1.AttentionService/SelfAttention";
    case Method::kCrossAttention:
      return "/attnd.v1.AttentionService/CrossAttention";
  }
  return "";
}

OutgoingMessage Encode(const ForwardCall& call) {
  size_t text_bytes = 256;  // beside the elements, mostly
  for (const auto& tensor :
       {&call.inputs.query, &call.inputs.key, &call.inputs.value}) {
    const size_t data_bytes = tensor->data.bytes().size();
    if (data_bytes < kSmallestPieceBytes) text_bytes += data_bytes;
  }
  OutgoingMessage message;
  message.Reserve(text_bytes);
  switch (call.method) {
    case Method::kAttention:
      AddTensor(v1::AttentionRequest::kQueryFieldNumber, call.inputs.query,
                &message);
      AddTensor(v1::AttentionRequest::kKeyFieldNumber, call.inputs.key,
                &message);
      AddTensor(v1::AttentionRequest::kValueFieldNumber, call.inputs.value,
                &message);
      AddOptions(v1::AttentionRequest::kOptionsFieldNumber, call.options,
                 AskedBy(call.outputs), &message);
      break;
    case Method::kSelfAttention:
      AddTensor(v1::SelfAttentionRequest::kSequenceFieldNumber,
                call.inputs.query, &message);
      AddOptions(v1::SelfAttentionRequest::kOptionsFieldNumber, call.options,
                 AskedBy(call.outputs), &message);
      break;
    case Method::kCrossAttention:
      AddTensor(v1::CrossAttentionRequest::kQueriesFieldNumber,
                call.inputs.query, &message);
      AddTensor(v1::CrossAttentionRequest::kKvSequenceFieldNumber,
                call.inputs.key, &message);
      AddOptions(v1::CrossAttentionRequest::kOptionsFieldNumber, call.options,
                 AskedBy(call.outputs), &message);
      break;
  }
  return message;
}

absl::Status CheckRooms(const ForwardCall& call) {
  const std::vector<int64_t>& query = call.inputs.query.shape;
  absl::Status status = CheckRoom(call.outputs.output, "output",
                                  OutputShape(query, call.inputs.value.shape));
  if (call.outputs.lse) {
    status.Update(CheckRoom(*call.outputs.lse, "lse",
                            LseShape(query, call.options.layout)));
  }
  return status;
}

// Whether any tensor lies in shared memory, of which no stream knows.
bool SharesMemory(const ForwardCall& call) {
  const AttentionInputs& in = call.inputs;
  const auto shared = [](const auto& elements) {
    return elements.place().has_value();
  };
  const auto shared_option = [&](const std::optional<ConstTensor>& tensor) {
    return tensor && shared(tensor->data);
  };
  return shared(in.query.data) || shared(in.key.data) ||
         shared(in.value.data) || shared_option(call.options.bias) ||
         shared_option(call.options.mask) || shared(call.outputs.output) ||
         (call.outputs.lse && shared(*call.outputs.lse));
}

// At most, as the server counts it.
uint64_t AnswerBytes(const AttentionOutputs& outputs) {
  constexpr uint64_t kEnvelopeBytes = 4096;
  const uint64_t lse_bytes = outputs.lse ? outputs.lse->bytes().size() : 0;
  return outputs.output.bytes().size() + lse_bytes + kEnvelopeBytes;
}

MessageLimits LimitsOf(const ServerInfo& info) {
  return {.request_bytes = info.max_receive_message_bytes,
          .response_bytes = info.max_send_message_bytes,
          .streams = std::find(info.features.begin(), info.features.end(),
                               "stream") != info.features.end()};
}

// Whether `request` goes as a message whatever the server says: it and its
// answer are such as every server takes, or only a message can hold them.
bool IsInline(const ForwardCall& call, const OutgoingMessage& request) {
  constexpr uint64_t kSmallestLimitBytes = 64 << 10;
  return SharesMemory(call) ||
         std::max(request.size_bytes(), AnswerBytes(call.outputs)) <=
             kSmallestLimitBytes;
}

// Whether they are no messages for this server, which streams.
bool MustStream(const OutgoingMessage& request, const AttentionOutputs& outputs,
                const MessageLimits& limits, int64_t max_message_bytes) {
  const auto within = [&](uint64_t bytes, int64_t limit) {
    return bytes <= static_cast<uint64_t>(std::max<int64_t>(
                        std::min(limit, max_message_bytes), 0));
  };
  return limits.streams &&
         !(within(request.size_bytes(), limits.request_bytes) &&
           within(AnswerBytes(outputs), limits.response_bytes));
}

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
  const absl::Status status =
      channel.Call(NameOf(call.method), request, client.deadline,
                   [&](google::protobuf::io::ZeroCopyInputStream* answer) {
                     reply = ReadReply(answer, call.outputs);
                   });
  if (!status.ok()) return status;
  return reply;
}

// Whether it may be because the server's limits are not what they were: gRPC
// refuses a message, or knows no such method, without a reason of attnd's.
bool MayHaveOtherLimits(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) && !absl::IsUnimplemented(status)) {
    return false;
  }
  const std::string reason = DetailsOf(status).reason;
  return reason.empty() || reason == "MESSAGE_TOO_LARGE";
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
  bool OnResponse(google::protobuf::io::ZeroCopyInputStream* message) override {
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
  auto pending = std::make_unique<InlineCall<AttentionOutputs, ForwardDone>>(
      call.outputs, std::move(done));
  pending->Publish();
  return channel.Start(NameOf(call.method), request, client.deadline,
                       std::move(pending));
}

// Of a call whose elements have owners, so that they outlive it.
std::shared_ptr<CallCanceller> StartKnowing(const MessageLimits& limits,
                                            RpcChannel& channel,
                                            const ForwardCall& call,
                                            const ClientOptions& client,
                                            ForwardDone done) {
  const OutgoingMessage request = Encode(call);
  if (!MustStream(request, call.outputs, limits, client.max_message_bytes)) {
    return StartInline(channel, call, request, client, std::move(done));
  }
  return channel.Start(kAttentionStream, client.deadline,
                       std::make_unique<StreamedCall>(
                           MakeExchange(call, limits, client.max_message_bytes),
                           std::move(done)));
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
              google::protobuf::io::ZeroCopyInputStream* answer) override {
    const std::lock_guard lock(mutex_);
    absl::StatusOr<ServerInfo> info = ServerInfo();
    v1::GetServerInfoResponse response;
    if (!status.ok()) {
      info = status;
    } else if (response.ParseFromZeroCopyStream(answer)) {
      info = DecodeServerInfo(response);
    } else {
      info = BadResponse();
    }
    const absl::StatusOr<MessageLimits> limits = state_.server->Take(info);
    if (!limits.ok()) {
      state_.done(limits.status());
      return;
    }
    state_.client.deadline -= absl::Now() - state_.start;
    state_.canceller->Add(StartKnowing(*limits, *state_.channel,
                                       state_.call.Borrowed(), state_.client,
                                       std::move(state_.done)));
  }

  // As in StreamedCall.
  void Publish() { const std::lock_guard lock(mutex_); }

 private:
  std::mutex mutex_;
  State state_;
};

}  // namespace

std::optional<MessageLimits> ServerLimits::Get() const {
  const std::lock_guard lock(mutex_);
  return limits_;
}

absl::StatusOr<MessageLimits> ServerLimits::Take(
    const absl::StatusOr<ServerInfo>& info) {
  const bool unknown = absl::IsUnimplemented(info.status());
  if (!info.ok() && !unknown) return info.status();
  const std::lock_guard lock(mutex_);
  limits_ = info.ok() ? LimitsOf(*info) : MessageLimits();
  return *limits_;
}

void ServerLimits::Forget() {
  const std::lock_guard lock(mutex_);
  limits_.reset();
}

absl::StatusOr<ServerInfo> AskServer(RpcChannel& channel,
                                     absl::Duration deadline) {
  v1::GetServerInfoResponse response;
  const absl::Status status = channel.Call(
      kGetServerInfo, v1::GetServerInfoRequest(), deadline, &response);
  if (!status.ok()) return status;
  return DecodeServerInfo(response);
}

absl::StatusOr<AttentionReply> CallForward(RpcChannel& channel,
                                           ServerLimits& server,
                                           const ForwardCall& call,
                                           const ClientOptions& options) {
  if (absl::Status status = CheckRooms(call); !status.ok()) return status;
  const OutgoingMessage request = Encode(call);
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
  const OutgoingMessage request = Encode(call);
  const std::optional<MessageLimits> limits = server->Get();
  const bool is_inline = IsInline(call, request);
  if (!is_inline && limits) {
    // The call is not made again, for its elements may be gone.
    done = [server, done = std::move(done)](const auto& reply) {
      if (MayHaveOtherLimits(reply.status())) server->Forget();
      done(reply);
    };
  }
  if (is_inline || (limits && !MustStream(request, call.outputs, *limits,
                                          client.max_message_bytes))) {
    return PendingCall(
        StartInline(*channel, call, request, client, std::move(done)));
  }
  if (limits) {
    return PendingCall(StartKnowing(*limits, *channel, Owned(call).Borrowed(),
                                    client, std::move(done)));
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
