#include "client/attention_client.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attnd/v1/attention.pb.h"
#include "client/message_codec.h"
#include "client/outgoing_message.h"
#include "client/rpc_channel.h"
#include "google/protobuf/io/zero_copy_stream.h"
#include "google/protobuf/wrappers.pb.h"

namespace attnd::client {
namespace {

constexpr char kAttention[] = "/attnd.v1.AttentionService/Attention";
constexpr char kSelfAttention[] = "/attnd.v1.AttentionService/SelfAttention";
constexpr char kCrossAttention[] = "/attnd.v1.AttentionService/CrossAttention";
constexpr char kAttentionBackward[] =
    "/attnd.v1.AttentionService/AttentionBackward";
constexpr char kBenchmark[] = "/attnd.v1.AttentionService/Benchmark";
constexpr char kMemoryEstimate[] = "/attnd.v1.AttentionService/MemoryEstimate";
constexpr char kGetServerInfo[] = "/attnd.v1.AttentionService/GetServerInfo";
constexpr char kHealthCheck[] = "/grpc.health.v1.Health/Check";

// A message above the limit is refused before its tensors are read.
absl::Status CheckSize(uint64_t bytes, int64_t max_message_bytes) {
  const auto limit = static_cast<uint64_t>(std::clamp<int64_t>(
      max_message_bytes, 0, std::numeric_limits<int>::max()));
  if (bytes <= limit) return absl::OkStatus();
  return ReasonError(
      absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
      absl::StrCat("request: expected at most ", limit,
                   " bytes (the client's max_message_bytes), got ", bytes));
}

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
v1::AttentionOptions AskedBy(const BackwardOutputs&) { return {}; }

OutgoingMessage EncodeTensors(const AttentionInputs& inputs) {
  using Request = v1::AttentionRequest;
  OutgoingMessage message;
  AddTensor(Request::kQueryFieldNumber, inputs.query, &message);
  AddTensor(Request::kKeyFieldNumber, inputs.key, &message);
  AddTensor(Request::kValueFieldNumber, inputs.value, &message);
  return message;
}

OutgoingMessage EncodeTensors(const ConstTensor& sequence) {
  OutgoingMessage message;
  AddTensor(v1::SelfAttentionRequest::kSequenceFieldNumber, sequence, &message);
  return message;
}

struct CrossInputs {
  const ConstTensor& queries;
  const ConstTensor& kv_sequence;
};

OutgoingMessage EncodeTensors(const CrossInputs& inputs) {
  using Request = v1::CrossAttentionRequest;
  OutgoingMessage message;
  AddTensor(Request::kQueriesFieldNumber, inputs.queries, &message);
  AddTensor(Request::kKvSequenceFieldNumber, inputs.kv_sequence, &message);
  return message;
}

OutgoingMessage EncodeTensors(const BackwardInputs& inputs) {
  using Request = v1::AttentionBackwardRequest;
  OutgoingMessage message;
  AddTensor(Request::kQueryFieldNumber, inputs.query, &message);
  AddTensor(Request::kKeyFieldNumber, inputs.key, &message);
  AddTensor(Request::kValueFieldNumber, inputs.value, &message);
  AddTensor(Request::kOutputFieldNumber, inputs.output, &message);
  AddTensor(Request::kLseFieldNumber, inputs.lse, &message);
  AddTensor(Request::kGradOutputFieldNumber, inputs.grad_output, &message);
  return message;
}

// The shapes that the answer's follow from.
struct AnswerShapes {
  const std::vector<int64_t>& query;
  const std::vector<int64_t>& value;
};
AnswerShapes ShapesOf(const AttentionInputs& inputs) {
  return {inputs.query.shape, inputs.value.shape};
}
AnswerShapes ShapesOf(const ConstTensor& sequence) {
  return {sequence.shape, sequence.shape};
}
AnswerShapes ShapesOf(const CrossInputs& inputs) {
  return {inputs.queries.shape, inputs.kv_sequence.shape};
}

template <typename Inputs>
absl::Status CheckRooms(const Inputs& inputs, const AttentionOutputs& outputs,
                        Layout layout) {
  const AnswerShapes shapes = ShapesOf(inputs);
  absl::Status status = CheckRoom(outputs.output, "output",
                                  OutputShape(shapes.query, shapes.value));
  if (outputs.lse) {
    status.Update(
        CheckRoom(*outputs.lse, "lse", LseShape(shapes.query, layout)));
  }
  return status;
}
// Gradients always travel inside the message.
absl::Status CheckRooms(const BackwardInputs&, const BackwardOutputs&, Layout) {
  return absl::OkStatus();
}

// `Request` has the tensors of `inputs`.
template <typename Request, typename Inputs, typename Outputs>
absl::StatusOr<OutgoingMessage> Encode(const Inputs& inputs,
                                       const Outputs& outputs,
                                       const AttentionOptions& options,
                                       int64_t max_message_bytes) {
  if (absl::Status status = CheckRooms(inputs, outputs, options.layout);
      !status.ok()) {
    return status;
  }
  OutgoingMessage message = EncodeTensors(inputs);
  AddOptions(Request::kOptionsFieldNumber, options, AskedBy(outputs), &message);
  if (absl::Status status = CheckSize(message.size_bytes(), max_message_bytes);
      !status.ok()) {
    return status;
  }
  return message;
}

template <typename Outputs, typename Done>
class AttentionCall final : public AsyncCall {
 public:
  AttentionCall(Outputs outputs, Done done)
      : outputs_(std::move(outputs)), done_(std::move(done)) {}

  void Fail(absl::Status status) { done_(std::move(status)); }

  // What was written before this is seen in OnDone. gRPC sees to that by
  // itself, but with locks that thread sanitizer cannot watch.
  void Publish() { published_.store(true, std::memory_order_release); }

  void OnDone(const absl::Status& status,
              google::protobuf::io::ZeroCopyInputStream* answer) override {
    (void)published_.load(std::memory_order_acquire);
    if (!status.ok()) return done_(status);
    done_(ReadReply(answer, outputs_));
  }

 private:
  Outputs outputs_;
  Done done_;
  std::atomic<bool> published_{false};
};

// Answers what ReadReply makes of the response.
template <typename Request, typename Inputs, typename Outputs>
auto Call(RpcChannel& channel, const char* method, const Inputs& inputs,
          const Outputs& outputs, const AttentionOptions& options,
          const ClientOptions& client) -> decltype(ReadReply({}, outputs)) {
  const absl::StatusOr<OutgoingMessage> request =
      Encode<Request>(inputs, outputs, options, client.max_message_bytes);
  if (!request.ok()) return request.status();
  decltype(ReadReply({}, outputs)) reply;
  const absl::Status status =
      channel.Call(method, *request, client.deadline,
                   [&](google::protobuf::io::ZeroCopyInputStream* answer) {
                     reply = ReadReply(answer, outputs);
                   });
  if (!status.ok()) return status;
  return reply;
}

template <typename Request, typename Inputs, typename Outputs, typename Done>
PendingCall Start(RpcChannel& channel, const char* method, const Inputs& inputs,
                  const Outputs& outputs, const AttentionOptions& options,
                  const ClientOptions& client, Done done) {
  auto call =
      std::make_unique<AttentionCall<Outputs, Done>>(outputs, std::move(done));
  const absl::StatusOr<OutgoingMessage> request =
      Encode<Request>(inputs, outputs, options, client.max_message_bytes);
  if (!request.ok()) {
    call->Fail(request.status());
    return {};
  }
  call->Publish();
  return PendingCall(
      channel.Start(method, *request, client.deadline, std::move(call)));
}

}  // namespace

PendingCall::PendingCall(std::shared_ptr<CallCanceller> call)
    : call_(std::move(call)) {}

void PendingCall::Cancel() const {
  if (call_) call_->Cancel();
}

AttentionClient::AttentionClient(ClientOptions options)
    : options_(std::move(options)),
      channel_(std::make_shared<RpcChannel>(options_.target,
                                            options_.max_message_bytes)) {}

AttentionClient AttentionClient::WithDeadline(absl::Duration deadline) const {
  AttentionClient other = *this;
  other.options_.deadline = deadline;
  return other;
}

absl::StatusOr<AttentionReply> AttentionClient::Attention(
    const AttentionInputs& inputs, const AttentionOutputs& outputs,
    const AttentionOptions& options) const {
  return Call<v1::AttentionRequest>(*channel_, kAttention, inputs, outputs,
                                    options, options_);
}

absl::StatusOr<AttentionReply> AttentionClient::SelfAttention(
    const ConstTensor& sequence, const AttentionOutputs& outputs,
    const AttentionOptions& options) const {
  return Call<v1::SelfAttentionRequest>(*channel_, kSelfAttention, sequence,
                                        outputs, options, options_);
}

absl::StatusOr<AttentionReply> AttentionClient::CrossAttention(
    const ConstTensor& queries, const ConstTensor& kv_sequence,
    const AttentionOutputs& outputs, const AttentionOptions& options) const {
  return Call<v1::CrossAttentionRequest>(*channel_, kCrossAttention,
                                         CrossInputs{queries, kv_sequence},
                                         outputs, options, options_);
}

PendingCall AttentionClient::AttentionAsync(const AttentionInputs& inputs,
                                            const AttentionOutputs& outputs,
                                            const AttentionOptions& options,
                                            Done done) const {
  return Start<v1::AttentionRequest>(*channel_, kAttention, inputs, outputs,
                                     options, options_, std::move(done));
}

PendingCall AttentionClient::SelfAttentionAsync(const ConstTensor& sequence,
                                                const AttentionOutputs& outputs,
                                                const AttentionOptions& options,
                                                Done done) const {
  return Start<v1::SelfAttentionRequest>(*channel_, kSelfAttention, sequence,
                                         outputs, options, options_,
                                         std::move(done));
}

PendingCall AttentionClient::CrossAttentionAsync(
    const ConstTensor& queries, const ConstTensor& kv_sequence,
    const AttentionOutputs& outputs, const AttentionOptions& options,
    Done done) const {
  return Start<v1::CrossAttentionRequest>(
      *channel_, kCrossAttention, CrossInputs{queries, kv_sequence}, outputs,
      options, options_, std::move(done));
}

absl::StatusOr<ExecutionStats> AttentionClient::AttentionBackward(
    const BackwardInputs& inputs, const BackwardOutputs& outputs,
    const AttentionOptions& options) const {
  return Call<v1::AttentionBackwardRequest>(*channel_, kAttentionBackward,
                                            inputs, outputs, options, options_);
}

PendingCall AttentionClient::AttentionBackwardAsync(
    const BackwardInputs& inputs, const BackwardOutputs& outputs,
    const AttentionOptions& options, BackwardDone done) const {
  return Start<v1::AttentionBackwardRequest>(*channel_, kAttentionBackward,
                                             inputs, outputs, options, options_,
                                             std::move(done));
}

absl::StatusOr<BenchmarkResult> AttentionClient::Benchmark(
    const BenchmarkOptions& options,
    const std::function<bool(const BenchmarkProgress&)>& on_progress) const {
  v1::BenchmarkResponse response;
  std::optional<BenchmarkResult> result;
  const absl::Status status = channel_->Stream(
      kBenchmark, EncodeBenchmark(options), &response, options_.deadline, [&] {
        if (response.has_result()) result = DecodeBenchmark(response.result());
        if (!response.has_progress() || !on_progress) return true;
        return on_progress({.phase = response.progress().phase(),
                            .fraction = response.progress().fraction()});
      });
  if (!status.ok()) return status;
  if (!result) {
    return ReasonError(absl::StatusCode::kInternal, "BAD_RESPONSE",
                       "the server ended a benchmark without its result");
  }
  return *result;
}

absl::StatusOr<MemoryEstimate> AttentionClient::EstimateMemory(
    const MemoryEstimateOptions& options) const {
  v1::MemoryEstimateResponse response;
  const absl::Status status = channel_->Call(
      kMemoryEstimate, EncodeEstimate(options), options_.deadline, &response);
  if (!status.ok()) return status;
  return DecodeEstimate(response);
}

absl::StatusOr<ServerInfo> AttentionClient::GetServerInfo() const {
  v1::GetServerInfoResponse response;
  const absl::Status status = channel_->Call(
      kGetServerInfo, v1::GetServerInfoRequest(), options_.deadline, &response);
  if (!status.ok()) return status;
  return DecodeServerInfo(response);
}

absl::StatusOr<Health> AttentionClient::CheckHealth(
    const std::string& service) const {
  // HealthCheckRequest is one string numbered 1 and HealthCheckResponse one
  // enum numbered 1, so protobuf's own wrappers are the same bytes. A copy of
  // health.proto would clash with one that the program links already.
  google::protobuf::StringValue request;
  request.set_value(service);
  google::protobuf::Int32Value response;
  const absl::Status status =
      channel_->Call(kHealthCheck, request, options_.deadline, &response);
  if (!status.ok()) return status;
  switch (response.value()) {
    case 1:
      return Health::kServing;
    case 2:
      return Health::kNotServing;
    default:
      return Health::kUnknown;
  }
}

}  // namespace attnd::client
