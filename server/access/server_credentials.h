// Hands the certificates and tokens of AccessControl to gRPC.
#ifndef ATTND_SERVER_ACCESS_SERVER_CREDENTIALS_H_
#define ATTND_SERVER_ACCESS_SERVER_CREDENTIALS_H_

#include <memory>

#include "grpcpp/security/server_credentials.h"
#include "server/access/access_control.h"

namespace attnd::server {

// Returns the credentials for connections of a server: encrypted if `tls` is
// true, and in plain text otherwise. If `access` needs tokens, gRPC refuses
// each call without one with UNAUTHENTICATED before it reads a message, except
// for health checks. `access` must outlive the server.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    const AccessControl& access, bool tls);

}  // namespace attnd::server

#endif  // ATTND_SERVER_ACCESS_SERVER_CREDENTIALS_H_
