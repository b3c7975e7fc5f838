#include "client/attention_client.h"

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attnd/v1/attention.pb.h"
#include "client/message_codec.h"
#include "client/rpc_channel.h"
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

// A message above the limit is refused before its tensors are copied into it;
// protobuf itself aborts the process at 2 GiB.
absl::Status CheckSize(uint64_t bytes, int64_t max_message_bytes) {
  const auto limit = static_cast<uint64_t>(std::clamp<int64_t>(
      max_message_bytes, 0, std::numeric_limits<int>::max()));
  if (bytes <= limit) return absl::OkStatus();
  return ReasonError(
      absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
      absl::StrCat("request: expected at most ", limit,
                   " bytes (the client's max_message_bytes), got ", bytes));
}

uint64_t MessageBytes(const ConstElements& elements) {
  return elements.place() ? 0 : elements.bytes().size();
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

struct NamedTensor {
  const ConstTensor& tensor;
  v1::Tensor* proto;
};

// Fills a request's tensors and options.
template <typename Request>
absl::Status Encode(std::initializer_list<NamedTensor> tensors,
                    const AttentionOptions& options, int64_t max_message_bytes,
                    Request* request) {
  uint64_t bytes = 0;
  for (const NamedTensor& named : tensors) {
    bytes += MessageBytes(named.tensor.data);
  }
  for (const auto* tensor : {&options.bias, &options.mask}) {
    if (*tensor) bytes += MessageBytes((*tensor)->data);
  }
  if (absl::Status status = CheckSize(bytes, max_message_bytes); !status.ok()) {
    return status;
  }
  for (const NamedTensor& named : tensors) {
    EncodeTensor(named.tensor, named.proto);
  }
  EncodeOptions(options, request->mutable_options());
  return CheckSize(request->ByteSizeLong(), max_message_bytes);
}

// The same of a forward method, with what its outputs ask for.
template <typename Request>
absl::Status Encode(std::initializer_list<NamedTensor> tensors,
                    const AttentionOutputs& outputs,
                    const AttentionOptions& options, int64_t max_message_bytes,
                    Request* request) {
  v1::AttentionOptions& proto = *request->mutable_options();
  proto.set_return_lse(outputs.lse.has_value());
  proto.set_output_dtype(EncodeType(outputs.output.type()));
  const std::vector<int64_t>& query_shape = tensors.begin()->tensor.shape;
  const std::vector<int64_t>& value_shape = (tensors.end() - 1)->tensor.shape;
  absl::Status room = CheckRoom(outputs.output, "output",
                                OutputShape(query_shape, value_shape));
  if (outputs.output.place()) {
    EncodePlace(*outputs.output.place(), proto.mutable_output_region());
  }
  if (outputs.lse) {
    room.Update(
        CheckRoom(*outputs.lse, "lse", LseShape(query_shape, options.layout)));
    if (outputs.lse->place()) {
      EncodePlace(*outputs.lse->place(), proto.mutable_lse_region());
    }
  }
  if (!room.ok()) return room;
  return Encode(tensors, options, max_message_bytes, request);
}

absl::Status EncodeRequest(const AttentionInputs& inputs,
                           const AttentionOutputs& outputs,
                           const AttentionOptions& options,
                           int64_t max_message_bytes,
                           v1::AttentionRequest* request) {
  return Encode({{inputs.query, request->mutable_query()},
                 {inputs.key, request->mutable_key()},
                 {inputs.value, request->mutable_value()}},
                outputs, options, max_message_bytes, request);
}

absl::Status EncodeRequest(const ConstTensor& sequence,
                           const AttentionOutputs& outputs,
                           const AttentionOptions& options,
                           int64_t max_message_bytes,
                           v1::SelfAttentionRequest* request) {
  return Encode({{sequence, request->mutable_sequence()}}, outputs, options,
                max_message_bytes, request);
}

absl::Status EncodeRequest(const BackwardInputs& inputs, const BackwardOutputs&,
                           const AttentionOptions& options,
                           int64_t max_message_bytes,
                           v1::AttentionBackwardRequest* request) {
  return Encode({{inputs.query, request->mutable_query()},
                 {inputs.key, request->mutable_key()},
                 {inputs.value, request->mutable_value()},
                 {inputs.output, request->mutable_output()},
                 {inputs.lse, request->mutable_lse()},
                 {inputs.grad_output, request->mutable_grad_output()}},
                options, max_message_bytes, request);
}

struct CrossInputs {
  const ConstTensor& queries;
  const ConstTensor& kv_sequence;
};

absl::Status EncodeRequest(const CrossInputs& inputs,
                           const AttentionOutputs& outputs,
                           const AttentionOptions& options,
                           int64_t max_message_bytes,
                           v1::CrossAttentionRequest* request) {
  return Encode({{inputs.queries, request->mutable_queries()},
                 {inputs.kv_sequence, request->mutable_kv_sequence()}},
                outputs, options, max_message_bytes, request);
}

template <typename Request, typename Response, typename Outputs, typename Done>
class AttentionCall final : public AsyncCall {
 public:
  AttentionCall(Outputs outputs, Done done)
      : outputs_(std::move(outputs)), done_(std::move(done)) {}

  Request* mutable_request() { return &request_; }
  void Fail(absl::Status status) { done_(std::move(status)); }

  // What was written before this is seen in OnDone. gRPC sees to that by
  // itself, but with locks that thread sanitizer cannot watch.
  void Publish() { published_.store(true, std::memory_order_release); }

  const google::protobuf::MessageLite& request() const override {
    return request_;
  }
  google::protobuf::MessageLite* response() override { return &response_; }

  void OnDone(const absl::Status& status) override {
    (void)published_.load(std::memory_order_acquire);
    if (!status.ok()) return done_(status);
    done_(DecodeReply(response_, outputs_));
  }

 private:
  Request request_;
  Response response_;
  Outputs outputs_;
  Done done_;
  std::atomic<bool> published_{false};
};

// Answers what DecodeReply makes of the response.
template <typename Request, typename Response, typename Inputs,
          typename Outputs>
auto Call(RpcChannel& channel, const char* method, const Inputs& inputs,
          const Outputs& outputs, const AttentionOptions& options,
          const ClientOptions& client)
    -> decltype(DecodeReply(Response(), outputs)) {
  Request request;
  absl::Status status = EncodeRequest(inputs, outputs, options,
                                      client.max_message_bytes, &request);
  if (!status.ok()) return status;
  Response response;
  status = channel.Call(method, request, &response, client.deadline);
  if (!status.ok()) return status;
  return DecodeReply(response, outputs);
}

template <typename Request, typename Response, typename Inputs,
          typename Outputs, typename Done>
PendingCall Start(RpcChannel& channel, const char* method, const Inputs& inputs,
                  const Outputs& outputs, const AttentionOptions& options,
                  const ClientOptions& client, Done done) {
  auto call = std::make_unique<AttentionCall<Request, Response, Outputs, Done>>(
      outputs, std::move(done));
  absl::Status status =
      EncodeRequest(inputs, outputs, options, client.max_message_bytes,
                    call->mutable_request());
  if (!status.ok()) {
    call->Fail(std::move(status));
    return {};
  }
  call->Publish();
  return PendingCall(channel.Start(method, std::move(call), client.deadline));
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
  return Call<v1::AttentionRequest, v1::AttentionResponse>(
      *channel_, kAttention, inputs, outputs, options, options_);
}

absl::StatusOr<AttentionReply> AttentionClient::SelfAttention(
    const ConstTensor& sequence, const AttentionOutputs& outputs,
    const AttentionOptions& options) const {
  return Call<v1::SelfAttentionRequest, v1::SelfAttentionResponse>(
      *channel_, kSelfAttention, sequence, outputs, options, options_);
}

absl::StatusOr<AttentionReply> AttentionClient::CrossAttention(
    const ConstTensor& queries, const ConstTensor& kv_sequence,
    const AttentionOutputs& outputs, const AttentionOptions& options) const {
  return Call<v1::CrossAttentionRequest, v1::CrossAttentionResponse>(
      *channel_, kCrossAttention, CrossInputs{queries, kv_sequence}, outputs,
      options, options_);
}

PendingCall AttentionClient::AttentionAsync(const AttentionInputs& inputs,
                                            const AttentionOutputs& outputs,
                                            const AttentionOptions& options,
                                            Done done) const {
  return Start<v1::AttentionRequest, v1::AttentionResponse>(
      *channel_, kAttention, inputs, outputs, options, options_,
      std::move(done));
}

PendingCall AttentionClient::SelfAttentionAsync(const ConstTensor& sequence,
                                                const AttentionOutputs& outputs,
                                                const AttentionOptions& options,
                                                Done done) const {
  return Start<v1::SelfAttentionRequest, v1::SelfAttentionResponse>(
      *channel_, kSelfAttention, sequence, outputs, options, options_,
      std::move(done));
}

PendingCall AttentionClient::CrossAttentionAsync(
    const ConstTensor& queries, const ConstTensor& kv_sequence,
    const AttentionOutputs& outputs, const AttentionOptions& options,
    Done done) const {
  return Start<v1::CrossAttentionRequest, v1::CrossAttentionResponse>(
      *channel_, kCrossAttention, CrossInputs{queries, kv_sequence}, outputs,
      options, options_, std::move(done));
}

absl::StatusOr<ExecutionStats> AttentionClient::AttentionBackward(
    const BackwardInputs& inputs, const BackwardOutputs& outputs,
    const AttentionOptions& options) const {
  return Call<v1::AttentionBackwardRequest, v1::AttentionBackwardResponse>(
      *channel_, kAttentionBackward, inputs, outputs, options, options_);
}

PendingCall AttentionClient::AttentionBackwardAsync(
    const BackwardInputs& inputs, const BackwardOutputs& outputs,
    const AttentionOptions& options, BackwardDone done) const {
  return Start<v1::AttentionBackwardRequest, v1::AttentionBackwardResponse>(
      *channel_, kAttentionBackward, inputs, outputs, options, options_,
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
      kMemoryEstimate, EncodeEstimate(options), &response, options_.deadline);
  if (!status.ok()) return status;
  return DecodeEstimate(response);
}

absl::StatusOr<ServerInfo> AttentionClient::GetServerInfo() const {
  v1::GetServerInfoResponse response;
  const absl::Status status = channel_->Call(
      kGetServerInfo, v1::GetServerInfoRequest(), &response, options_.deadline);
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
      channel_->Call(kHealthCheck, request, &response, options_.deadline);
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
