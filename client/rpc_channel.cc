#include "client/rpc_channel.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
// Protobuf messages on generic stubs; the header moved in gRPC 1.52.
#if __has_include(<grpcpp/impl/proto_utils.h>)
#include <grpcpp/impl/proto_utils.h>  // NOLINT(misc-include-cleaner)
#else
#include <grpcpp/impl/codegen/proto_utils.h>  // NOLINT(misc-include-cleaner)
#endif

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/cord.h"
#include "client/error_details.h"
#include "google/protobuf/message_lite.h"

namespace attnd::client {
namespace {

using google::protobuf::MessageLite;

absl::Status ToAbsl(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
  if (!status.error_details().empty()) {
    result.SetPayload(kStatusPayloadUrl, absl::Cord(status.error_details()));
  }
  return result;
}

void SetDeadline(absl::Duration deadline, grpc::ClientContext& context) {
  if (deadline == absl::InfiniteDuration()) return;
  context.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
}

// One call's own queue, waited on by the thread that makes the call.
class CallQueue {
 public:
  ~CallQueue() {
    queue_.Shutdown();
    while (Wait()) continue;
  }

  grpc::CompletionQueue* get() { return &queue_; }

  // Waits for the one operation that was started; false where it failed.
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

 private:
  grpc::CompletionQueue queue_;
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

grpc::ChannelArguments MakeArguments(int64_t max_message_bytes) {
  const int limit = static_cast<int>(std::clamp<int64_t>(
      max_message_bytes, 0, std::numeric_limits<int>::max()));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(limit);
  arguments.SetMaxSendMessageSize(limit);
  // Tensors go to the address that was asked for, never to the proxy that the
  // environment names for web traffic.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

}  // namespace

class RpcChannel::Impl {
 public:
  Impl(const std::string& target, int64_t max_message_bytes)
      : stub(grpc::CreateCustomChannel(target,
                                       grpc::InsecureChannelCredentials(),
                                       MakeArguments(max_message_bytes))) {}

  grpc::TemplatedGenericStub<MessageLite, MessageLite> stub;
};

RpcChannel::RpcChannel(const std::string& target, int64_t max_message_bytes)
    : impl_(std::make_unique<Impl>(target, max_message_bytes)) {}

RpcChannel::~RpcChannel() = default;

absl::Status RpcChannel::Call(const std::string& method,
                              const MessageLite& request, MessageLite* response,
                              absl::Duration deadline) {
  grpc::ClientContext context;
  SetDeadline(deadline, context);
  CallQueue queue;
  const auto call =
      impl_->stub.PrepareUnaryCall(&context, method, request, queue.get());
  grpc::Status status;
  call->StartCall();
  call->Finish(response, &status, nullptr);
  queue.Wait();
  return ToAbsl(status);
}

std::shared_ptr<CallCanceller> RpcChannel::Start(
    const std::string& method, std::unique_ptr<AsyncCall> call,
    absl::Duration deadline) {
  KeepCallbackThreads();
  auto canceller = std::make_shared<ContextCanceller>();
  SetDeadline(deadline, canceller->context);
  std::shared_ptr<AsyncCall> shared = std::move(call);
  const MessageLite* request = &shared->request();
  MessageLite* response = shared->response();
  impl_->stub.UnaryCall(&canceller->context, method, {}, request, response,
                        [shared, canceller](const grpc::Status& status) {
                          shared->OnDone(ToAbsl(status));
                        });
  return canceller;
}

absl::Status RpcChannel::Stream(const std::string& method,
                                const MessageLite& request,
                                MessageLite* response, absl::Duration deadline,
                                const std::function<bool()>& on_response) {
  grpc::ClientContext context;
  SetDeadline(deadline, context);
  CallQueue queue;
  const auto stream = impl_->stub.PrepareCall(&context, method, queue.get());
  bool wanted = true;
  stream->StartCall(nullptr);
  if (queue.Wait()) {
    stream->WriteLast(request, grpc::WriteOptions(), nullptr);
    if (queue.Wait()) {
      for (;;) {
        stream->Read(response, nullptr);
        if (!queue.Wait()) break;
        if (wanted && !on_response()) {
          wanted = false;
          context.TryCancel();
        }
      }
    }
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  queue.Wait();
  // The end may have been on its way already when the call was cancelled.
  if (!wanted) return absl::CancelledError("the caller stopped the call");
  return ToAbsl(status);
}

}  // namespace attnd::client
