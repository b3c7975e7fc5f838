// The gRPC side of AttentionService: reactors that hand bytes to the calls and
// answers to gRPC. No maths, no shape rules, no parsing.
#ifndef ATTND_SERVER_RPC_ATTENTION_SERVICE_H_
#define ATTND_SERVER_RPC_ATTENTION_SERVICE_H_

#include <memory>

#include "grpcpp/impl/codegen/service_type.h"
#include "server/calls/service_context.h"
#include "server/memory/message_quota.h"

namespace attnd::server {

// A service that answers from `context`, which must outlive it. Every method
// is raw: bytes in, bytes out. What came in counts for `messages`.
std::unique_ptr<grpc::Service> MakeAttentionService(
    const ServiceContext& context, std::shared_ptr<MessageQuota> messages);

}  // namespace attnd::server

#endif  // ATTND_SERVER_RPC_ATTENTION_SERVICE_H_
