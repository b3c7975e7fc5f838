#include "server/access/caller.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/field_error.h"
#include "grpcpp/security/auth_context.h"
#include "grpcpp/support/string_ref.h"
#include "server/access/token_list.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

// Returns the owner of the call's token. gRPC has checked the token before, but
// cannot hand over its owner. Returns nothing if the token was removed since.
std::optional<TokenOwner> TokenOwnerOf(const grpc::CallbackServerContext& rpc,
                                       const AccessControl& access) {
  const auto entry = rpc.client_metadata().find("authorization");
  if (entry == rpc.client_metadata().end()) return std::nullopt;
  const std::shared_ptr<const TokenList> tokens = access.tokens();
  const TokenOwner* const owner =
      tokens->Find(BearerToken({entry->second.data(), entry->second.size()}));
  if (owner == nullptr) return std::nullopt;
  return *owner;
}

}  // namespace

std::optional<std::string> IdentityOf(const grpc::CallbackServerContext& rpc,
                                      const AccessControl* access) {
  if (access == nullptr) return std::nullopt;
  if (access->needs_tokens()) {
    if (std::optional<TokenOwner> owner = TokenOwnerOf(rpc, *access)) {
      return std::move(owner->name);
    }
  }
  if (access->needs_client_certificates()) {
    const std::vector<grpc::string_ref> names =
        rpc.auth_context()->GetPeerIdentity();
    if (!names.empty()) {
      return std::string(names.front().data(), names.front().size());
    }
  }
  return std::nullopt;
}

absl::Status CheckIsAdmin(const grpc::CallbackServerContext& rpc,
                          const AccessControl* access) {
  if (access == nullptr || !access->needs_tokens()) return absl::OkStatus();
  const std::optional<TokenOwner> owner = TokenOwnerOf(rpc, *access);
  if (owner && owner->is_admin) return absl::OkStatus();
  return WithReason(
      absl::PermissionDeniedError(
          "authorization: expected a token with the role admin, got one "
          "without it: ask the operator of the server, who gives roles in the "
          "file of --token-file"),
      kAdminRoleRequired);
}

}  // namespace attnd::server
