// Answers calls of methods that the server does not have.
#ifndef ATTND_SERVER_RPC_UNKNOWN_METHODS_H_
#define ATTND_SERVER_RPC_UNKNOWN_METHODS_H_

#include <memory>

#include "grpcpp/generic/async_generic_service.h"
#include "server/access/access_control.h"
#include "server/tracing/span_exporter.h"

namespace attnd::server {

// Returns a service that answers every call with UNIMPLEMENTED. gRPC could do
// that, but it would not tell the server, so that the log would have no line
// for the call. `access` and `spans` may be null and must outlive the service.
std::unique_ptr<grpc::CallbackGenericService> MakeUnknownMethods(
    const AccessControl* access, SpanExporter* spans);

}  // namespace attnd::server

#endif  // ATTND_SERVER_RPC_UNKNOWN_METHODS_H_
