// Finds out who makes a call.
#ifndef ATTND_SERVER_ACCESS_CALLER_H_
#define ATTND_SERVER_ACCESS_CALLER_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "grpcpp/server_context.h"
#include "server/access/access_control.h"

namespace attnd::server {

// Returns who calls: the name of the caller's token, otherwise the name in its
// certificate (the first subject alternative name, or the common name), and
// nothing if it has neither. Takes less than a microsecond with up to 100
// tokens. `access` may be null.
std::optional<std::string> IdentityOf(const grpc::CallbackServerContext& rpc,
                                      const AccessControl* access);

// Returns PERMISSION_DENIED unless the caller may use methods that are only for
// administrators. If calls need no token, everybody may use them. `access` may
// be null.
absl::Status CheckIsAdmin(const grpc::CallbackServerContext& rpc,
                          const AccessControl* access);

}  // namespace attnd::server

#endif  // ATTND_SERVER_ACCESS_CALLER_H_
