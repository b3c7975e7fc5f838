#include "tests/client/fake_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <limits>

#include "attnd/v1/attention.grpc.pb.h"

namespace attnd::client {
namespace {

grpc::Status ToGrpc(const WireReply& reply) {
  return {static_cast<grpc::StatusCode>(reply.code), reply.message,
          reply.details};
}

class FakeService final : public v1::AttentionService::Service {
 public:
  explicit FakeService(FakeHandler* handler) : handler_(handler) {}

  grpc::Status Attention(grpc::ServerContext* context,
                         const v1::AttentionRequest* request,
                         v1::AttentionResponse* response) override {
    if (!Admits(*context)) return Unauthenticated();
    return Answer({"Attention",
                   {request->query(), request->key(), request->value()},
                   request->options()},
                  response);
  }

  grpc::Status SelfAttention(grpc::ServerContext* context,
                             const v1::SelfAttentionRequest* request,
                             v1::SelfAttentionResponse* response) override {
    if (!Admits(*context)) return Unauthenticated();
    return Answer({"SelfAttention", {request->sequence()}, request->options()},
                  response);
  }

  grpc::Status CrossAttention(grpc::ServerContext* context,
                              const v1::CrossAttentionRequest* request,
                              v1::CrossAttentionResponse* response) override {
    if (!Admits(*context)) return Unauthenticated();
    return Answer({"CrossAttention",
                   {request->queries(), request->kv_sequence()},
                   request->options()},
                  response);
  }

  grpc::Status AttentionBackward(
      grpc::ServerContext* context, const v1::AttentionBackwardRequest* request,
      v1::AttentionBackwardResponse* response) override {
    if (!Admits(*context)) return Unauthenticated();
    return ToGrpc(handler_->OnBackward(
        {"AttentionBackward",
         {request->query(), request->key(), request->value(), request->output(),
          request->lse(), request->grad_output()},
         request->options()},
        response));
  }

  // Like the real server, sends the header of the answer before it reads the
  // chunks. It joins the chunks of each tensor, and sends its own tensors in
  // chunks of handler_->chunk_bytes().
  grpc::Status AttentionStream(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::AttentionStreamResponse,
                               v1::AttentionStreamRequest>* stream) override {
    if (!Admits(*context)) return Unauthenticated();
    v1::AttentionStreamRequest message;
    v1::AttentionRequest request;
    const auto call = [&]() -> FakeCall {
      return {"AttentionStream",
              {request.query(), request.key(), request.value()},
              request.options()};
    };
    int chunks = 0;
    while (stream->Read(&message)) {
      if (message.has_header()) {
        request = message.header();
        v1::AttentionStreamResponse header;
        *header.mutable_header() = FakeHandler::DescribeAnswer(call());
        stream->Write(header);
      }
      if (!message.has_chunk()) continue;
      Append(message.chunk(), request);
      const WireReply reply = handler_->OnChunk(++chunks);
      if (reply.code != 0) return ToGrpc(reply);
    }
    v1::AttentionResponse answer;
    const WireReply reply = handler_->OnAttention(call(), &answer);
    if (reply.code != 0) return ToGrpc(reply);
    Write(v1::TENSOR_ROLE_OUTPUT, answer.output().data(), stream);
    if (answer.has_lse()) {
      Write(v1::TENSOR_ROLE_LSE, answer.lse().data(), stream);
    }
    v1::AttentionStreamResponse stats;
    *stats.mutable_stats() = answer.stats();
    stream->Write(stats);
    return ToGrpc(reply);
  }

  grpc::Status Benchmark(
      grpc::ServerContext* context, const v1::BenchmarkRequest* request,
      grpc::ServerWriter<v1::BenchmarkResponse>* writer) override {
    if (!Admits(*context)) return Unauthenticated();
    return ToGrpc(handler_->OnBenchmark(
        *request, [writer](const v1::BenchmarkResponse& event) {
          return writer->Write(event);
        }));
  }

  grpc::Status MemoryEstimate(grpc::ServerContext* context,
                              const v1::MemoryEstimateRequest* request,
                              v1::MemoryEstimateResponse* response) override {
    if (!Admits(*context)) return Unauthenticated();
    return ToGrpc(handler_->OnMemoryEstimate(*request, response));
  }

  grpc::Status GetServerInfo(grpc::ServerContext* context,
                             const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse* response) override {
    if (!Admits(*context)) return Unauthenticated();
    return ToGrpc(handler_->OnServerInfo(response));
  }

 private:
  static grpc::Status Unauthenticated() {
    return {grpc::StatusCode::UNAUTHENTICATED, "who are you?"};
  }
  bool Admits(const grpc::ServerContext& context) const {
    const auto found = context.client_metadata().find("authorization");
    return handler_->Admits(
        found == context.client_metadata().end()
            ? ""
            : std::string(found->second.data(), found->second.size()));
  }

  static void Append(const v1::TensorChunk& chunk,
                     v1::AttentionRequest& request) {
    v1::AttentionOptions& options = *request.mutable_options();
    v1::Tensor* const tensor =
        chunk.role() == v1::TENSOR_ROLE_QUERY   ? request.mutable_query()
        : chunk.role() == v1::TENSOR_ROLE_KEY   ? request.mutable_key()
        : chunk.role() == v1::TENSOR_ROLE_VALUE ? request.mutable_value()
        : chunk.role() == v1::TENSOR_ROLE_BIAS  ? options.mutable_bias()
                                                : options.mutable_mask();
    if (chunk.offset_bytes() == static_cast<int64_t>(tensor->data().size())) {
      tensor->mutable_data()->append(chunk.data());
    }
  }

  void Write(v1::TensorRole role, const std::string& data,
             grpc::ServerReaderWriter<v1::AttentionStreamResponse,
                                      v1::AttentionStreamRequest>* to) {
    const size_t chunk_bytes = handler_->chunk_bytes();
    for (size_t at = 0; at < data.size(); at += chunk_bytes) {
      v1::AttentionStreamResponse message;
      message.mutable_chunk()->set_role(role);
      message.mutable_chunk()->set_offset_bytes(static_cast<int64_t>(at));
      message.mutable_chunk()->set_data(data.substr(at, chunk_bytes));
      to->Write(message);
    }
  }

  template <typename Response>
  grpc::Status Answer(const FakeCall& call, Response* response) {
    v1::AttentionResponse answer;
    const WireReply reply = handler_->OnAttention(call, &answer);
    *response->mutable_output() = answer.output();
    if (answer.has_lse()) *response->mutable_lse() = answer.lse();
    *response->mutable_stats() = answer.stats();
    return ToGrpc(reply);
  }

  FakeHandler* handler_;
};

std::shared_ptr<grpc::ServerCredentials> Credentials(
    const std::optional<FakeTls>& tls) {
  if (!tls) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      tls->client_ca.empty()
          ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
          : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = tls->client_ca;
  options.pem_key_cert_pairs.push_back({tls->key, tls->cert});
  return grpc::SslServerCredentials(options);
}

}  // namespace

class FakeServer::Impl {
 public:
  explicit Impl(FakeHandler* handler) : service(handler) {}

  FakeService service;
  std::unique_ptr<grpc::Server> server;
};

FakeServer::FakeServer(FakeHandler* handler, const std::string& address,
                       const std::optional<FakeTls>& tls)
    : impl_(std::make_unique<Impl>(handler)) {
  grpc::EnableDefaultHealthCheckService(true);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, Credentials(tls), &port);
  builder.SetMaxReceiveMessageSize(std::numeric_limits<int>::max());
  builder.RegisterService(&impl_->service);
  impl_->server = builder.BuildAndStart();
  if (!impl_->server) return;
  target_ = address.starts_with("unix:") ? address
                                         : "127.0.0.1:" + std::to_string(port);
}

FakeServer::~FakeServer() {
  if (impl_->server) impl_->server->Shutdown();
}

void FakeServer::SetServing(bool serving) {
  impl_->server->GetHealthCheckService()->SetServingStatus(serving);
}

}  // namespace attnd::client
