// The gRPC service of attnd. It passes the bytes of messages from gRPC to the
// classes in server/calls/, and their answers back to gRPC. Parsing, checks and
// computation are there.
#ifndef ATTND_SERVER_RPC_ATTENTION_SERVICE_H_
#define ATTND_SERVER_RPC_ATTENTION_SERVICE_H_

#include <memory>

#include "grpcpp/impl/codegen/service_type.h"
#include "server/calls/service_context.h"
#include "server/memory/message_quota.h"

namespace attnd::server {

// Returns a service for grpc::ServerBuilder::RegisterService. `context` must
// outlive it. Every method is raw, which means that gRPC does not parse its
// messages. The service counts the bytes of received messages in `messages`.
std::unique_ptr<grpc::Service> MakeAttentionService(
    const ServiceContext& context, std::shared_ptr<MessageQuota> messages);

}  // namespace attnd::server

#endif  // ATTND_SERVER_RPC_ATTENTION_SERVICE_H_
