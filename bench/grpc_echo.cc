#include "bench/grpc_echo.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "bench/echo.grpc.pb.h"

namespace attnd::bench {
namespace {

using grpc::ByteBuffer;

constexpr int kMaxMessageBytes = 1 << 30;

// Returns the first `size` bytes of `from` without copying them.
ByteBuffer Prefix(const std::vector<grpc::Slice>& from, uint64_t size) {
  std::vector<grpc::Slice> kept;
  for (const grpc::Slice& slice : from) {
    if (size == 0) break;
    const uint64_t part = std::min<uint64_t>(size, slice.size());
    kept.push_back(part == slice.size() ? slice : slice.sub(0, part));
    size -= part;
  }
  return {kept.data(), kept.size()};
}

// Returns the number at the begin of the bytes. It can be spread over several
// slices.
uint64_t ReplyBytes(const std::vector<grpc::Slice>& slices) {
  uint64_t number = 0;
  char* to = reinterpret_cast<char*>(&number);
  size_t left = sizeof(number);
  for (const grpc::Slice& slice : slices) {
    const size_t part = std::min(left, slice.size());
    std::memcpy(to, slice.begin(), part);
    to += part;
    left -= part;
  }
  return number;
}

using EchoBase = Echo::WithRawCallbackMethod_Raw<
    Echo::WithCallbackMethod_Protobuf<Echo::Service>>;

class EchoService final : public EchoBase {
 public:
  grpc::ServerUnaryReactor* Raw(grpc::CallbackServerContext* context,
                                const ByteBuffer* request,
                                ByteBuffer* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    std::vector<grpc::Slice> slices;
    if (!request->Dump(&slices).ok()) {
      reactor->Finish({grpc::StatusCode::INTERNAL, "an unreadable message"});
      return reactor;
    }
    *response = Prefix(slices, ReplyBytes(slices));
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerUnaryReactor* Protobuf(grpc::CallbackServerContext* context,
                                     const EchoMessage* request,
                                     EchoMessage* response) override {
    response->mutable_data()->assign(request->data(), 0,
                                     request->reply_bytes());
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

void Check(const grpc::Status& status, uint64_t got, uint64_t expected) {
  if (!status.ok()) {
    throw std::runtime_error("grpc_echo: " + status.error_message());
  }
  if (got != expected) {
    throw std::runtime_error("grpc_echo: expected " + std::to_string(expected) +
                             " bytes, got " + std::to_string(got));
  }
}

}  // namespace

class EchoServer::Impl {
 public:
  explicit Impl(const std::vector<std::string>& listen) : addresses(listen) {
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.RegisterService(&service);
    std::vector<int> ports(listen.size(), 0);
    for (size_t i = 0; i < listen.size(); ++i) {
      builder.AddListeningPort(listen[i], grpc::InsecureServerCredentials(),
                               &ports[i]);
    }
    server = builder.BuildAndStart();
    for (size_t i = 0; i < listen.size(); ++i) {
      if (!server || ports[i] == 0) {
        throw std::runtime_error("grpc_echo: cannot listen on " + listen[i]);
      }
      if (listen[i].starts_with("unix:")) continue;
      addresses[i] = listen[i].substr(0, listen[i].rfind(':') + 1) +
                     std::to_string(ports[i]);
    }
  }

  EchoService service;
  std::unique_ptr<grpc::Server> server;
  std::vector<std::string> addresses;
};

EchoServer::EchoServer(const std::vector<std::string>& listen)
    : impl_(std::make_unique<Impl>(listen)) {}
EchoServer::~EchoServer() = default;
const std::vector<std::string>& EchoServer::addresses() const {
  return impl_->addresses;
}

class EchoClient::Impl {
 public:
  Impl(const std::string& target, uint64_t request_bytes, uint64_t reply_bytes)
      : reply_bytes_(reply_bytes) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
    // Otherwise all clients of this process would share one connection.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel = grpc::CreateCustomChannel(
        target, grpc::InsecureChannelCredentials(), arguments);
    raw_stub_ = std::make_unique<grpc::GenericStub>(channel);
    stub_ = Echo::NewStub(channel);
    std::string bytes(std::max(request_bytes, uint64_t{8}), 'x');
    message_.set_reply_bytes(reply_bytes);
    message_.set_data(bytes);
    std::memcpy(bytes.data(), &reply_bytes, sizeof(reply_bytes));
    const grpc::Slice slice(bytes);
    buffer_ = ByteBuffer(&slice, 1);
  }

  void CallRaw() {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    ByteBuffer reply;
    grpc::Status status;
    const auto call = raw_stub_->PrepareUnaryCall(
        &context, "/attnd.bench.Echo/Raw", buffer_, &queue);
    call->StartCall();
    call->Finish(&reply, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    queue.Shutdown();
    while (queue.Next(&tag, &ok)) continue;
    Check(status, status.ok() ? reply.Length() : 0, reply_bytes_);
  }

  void CallProtobuf() {
    grpc::ClientContext context;
    EchoMessage reply;
    const grpc::Status status = stub_->Protobuf(&context, message_, &reply);
    Check(status, reply.data().size(), reply_bytes_);
  }

 private:
  uint64_t reply_bytes_;
  std::unique_ptr<grpc::GenericStub> raw_stub_;
  std::unique_ptr<Echo::Stub> stub_;
  EchoMessage message_;
  ByteBuffer buffer_;
};

EchoClient::EchoClient(const std::string& target, int64_t request_bytes,
                       int64_t reply_bytes)
    : impl_(std::make_unique<Impl>(target, static_cast<uint64_t>(request_bytes),
                                   static_cast<uint64_t>(reply_bytes))) {}
EchoClient::~EchoClient() = default;
void EchoClient::CallRaw() { impl_->CallRaw(); }
void EchoClient::CallProtobuf() { impl_->CallProtobuf(); }

}  // namespace attnd::bench
