#include "server/rpc/unknown_methods.h"

#include "absl/status/status.h"
#include "server/rpc/call_record.h"
#include "server/rpc/rpc_adapter.h"

namespace attnd::server {
namespace {

class UnknownReactor final : public grpc::ServerGenericBidiReactor {
 public:
  UnknownReactor(grpc::GenericCallbackServerContext& rpc,
                 const AccessControl* access, SpanExporter* spans)
      : record_(rpc.method(), rpc, access, spans) {
    const absl::Status status = absl::UnimplementedError(
        "the server has no method of this name: expected one of "
        "attnd.v1.AttentionService in the version that attnctl info prints");
    record_.Finished(status, {});
    Finish(ToGrpcStatus(status, rpc));
  }
  void OnCancel() override { record_.Cancelled(); }
  void OnDone() override { delete this; }

 private:
  CallRecord record_;
};

class UnknownMethods final : public grpc::CallbackGenericService {
 public:
  UnknownMethods(const AccessControl* access, SpanExporter* spans)
      : access_(access), spans_(spans) {}

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* rpc) override {
    return new UnknownReactor(*rpc, access_, spans_);
  }

 private:
  const AccessControl* const access_;
  SpanExporter* const spans_;
};

}  // namespace

std::unique_ptr<grpc::CallbackGenericService> MakeUnknownMethods(
    const AccessControl* access, SpanExporter* spans) {
  return std::make_unique<UnknownMethods>(access, spans);
}

}  // namespace attnd::server
