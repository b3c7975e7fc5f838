#include "tests/support/raw_call.h"

#include <optional>

#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"

namespace attnd::testing {
namespace {

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return {&slice, 1};
}

std::string ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return {};
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

grpc::ChannelArguments Arguments() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  // Every client has a connection of its own.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return arguments;
}

}  // namespace

class RawClient::Impl {
 public:
  explicit Impl(const std::string& address)
      : stub_(grpc::CreateCustomChannel(
            address, grpc::InsecureChannelCredentials(), Arguments())) {}

  RawReply Call(const std::string& method, const std::string& request,
                const RawOptions& options) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + options.timeout);
    if (options.gzip) context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    grpc::CompletionQueue queue;
    const auto stream = stub_.PrepareCall(&context, method, &queue);
    std::optional<std::chrono::system_clock::time_point> cancel_at;
    if (options.cancel_after.count() > 0) {
      cancel_at = std::chrono::system_clock::now() + options.cancel_after;
    }
    // Only one operation runs at a time, so every event belongs to the one that
    // was started.
    const auto wait = [&] {
      void* tag = nullptr;
      bool ok = false;
      if (cancel_at && queue.AsyncNext(&tag, &ok, *cancel_at) ==
                           grpc::CompletionQueue::TIMEOUT) {
        context.TryCancel();
        cancel_at.reset();
      } else if (cancel_at) {
        return ok;
      }
      return queue.Next(&tag, &ok) && ok;
    };
    RawReply reply;
    stream->StartCall(nullptr);
    bool going = wait();
    if (going) {
      stream->WriteLast(ToBuffer(request), {}, nullptr);
      // A server can answer without reading.
      wait();
    }
    while (going) {
      grpc::ByteBuffer response;
      stream->Read(&response, nullptr);
      going = wait();
      if (!going) break;
      reply.responses.push_back(ToString(response));
      if (options.keep_going && !options.keep_going(reply.responses.back())) {
        context.TryCancel();
      }
    }
    grpc::Status status;
    stream->Finish(&status, nullptr);
    wait();
    reply.code = status.error_code();
    reply.message = status.error_message();
    reply.details = status.error_details();
    queue.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue.Next(&tag, &ok)) {
    }
    return reply;
  }

 private:
  grpc::GenericStub stub_;
};

RawClient::RawClient(const std::string& address)
    : impl_(std::make_unique<Impl>(address)) {}
RawClient::~RawClient() = default;

RawReply RawClient::Call(const std::string& method, const std::string& request,
                         const RawOptions& options) {
  return impl_->Call(method, request, options);
}

}  // namespace attnd::testing
