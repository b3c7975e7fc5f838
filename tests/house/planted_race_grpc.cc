// The gRPC part of planted_race.cc. As in the server, it is small and not
// instrumented.
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <future>
#include <memory>

#include "tests/house/planted_race.h"

namespace attnd::house {
namespace {

// Answers every method with one empty message.
class Reactor : public grpc::ServerGenericBidiReactor {
 public:
  Reactor() { StartRead(&request_); }
  void OnReadDone(bool) override {
    PlantedHandler();
    StartWriteAndFinish(&response_, {}, grpc::Status::OK);
  }
  void OnDone() override { delete this; }

 private:
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_{grpc::ByteBuffer(nullptr, 0)};
};

class Service : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext*) override {
    return new Reactor;
  }
};

bool Call(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  const grpc::ByteBuffer request(nullptr, 0);
  grpc::ByteBuffer response;
  std::promise<bool> ok;
  stub.UnaryCall(
      &context, "/house.Race/Run", {}, &request, &response,
      [&ok](const grpc::Status& status) { ok.set_value(status.ok()); });
  return ok.get_future().get();
}

}  // namespace

bool CallTwiceAtOnce() {
  Service service;
  grpc::ServerBuilder builder;
  builder.RegisterCallbackGenericService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const auto channel = server->InProcessChannel({});
  auto first =
      std::async(std::launch::async, [&channel] { return Call(channel); });
  const bool second = Call(channel);
  const bool both = first.get() && second;
  server->Shutdown();
  return both;
}

}  // namespace attnd::house
