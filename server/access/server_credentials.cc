#include "server/access/server_credentials.h"

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "grpc/grpc.h"
#include "grpc/grpc_security.h"
#include "grpc/slice.h"
#include "server/access/token_list.h"

namespace attnd::server {
namespace {

absl::string_view Text(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)),
          GRPC_SLICE_LENGTH(slice)};
}

// Returns why a call with this metadata is refused, or null if it is allowed.
const char* WhyRefused(const AccessControl& access, const grpc_metadata* begin,
                       size_t size) {
  absl::string_view authorization;
  int authorizations = 0;
  for (const grpc_metadata* entry = begin; entry != begin + size; ++entry) {
    const absl::string_view key = Text(entry->key);
    if (key == ":path" &&
        absl::StartsWith(Text(entry->value), "/grpc.health.v1.Health/")) {
      return nullptr;
    }
    if (key == "authorization") {
      authorization = Text(entry->value);
      ++authorizations;
    }
  }
  if (authorizations == 0) {
    return "authorization: expected metadata with the value \"Bearer TOKEN\", "
           "got none: this server accepts only calls with a token, which its "
           "operator gives you";
  }
  if (authorizations > 1) {
    return "authorization: expected one value, got several: send one token";
  }
  const absl::string_view token = BearerToken(authorization);
  if (token.empty()) {
    return "authorization: expected \"Bearer TOKEN\" with a token of at most "
           "4096 bytes, got something else";
  }
  if (access.tokens()->Find(token) == nullptr) {
    return "authorization: the server does not know this token: it may have "
           "been replaced, so ask the operator of the server for a new one";
  }
  return nullptr;
}

// What gRPC's callbacks need. It lives as long as gRPC's credentials, which can
// be longer than the object of the C++ class.
struct State {
  explicit State(const AccessControl& its_access) : access(its_access) {}

  const AccessControl& access;
  std::mutex mutex;
  int64_t fetched = 0;  // the number of the files that gRPC has
};

void CheckToken(void* state, grpc_auth_context*, const grpc_metadata* metadata,
                size_t size, grpc_process_auth_metadata_done_cb done,
                void* call) {
  const AccessControl& access = static_cast<State*>(state)->access;
  const char* const why = WhyRefused(access, metadata, size);
  if (why != nullptr) access.CountRefusedCall();
  done(call, /*consumed_md=*/nullptr, 0, /*response_md=*/nullptr, 0,
       why == nullptr ? GRPC_STATUS_OK : GRPC_STATUS_UNAUTHENTICATED, why);
}

// gRPC calls this when the server starts and before each handshake.
grpc_ssl_certificate_config_reload_status FetchTlsFiles(
    void* state_of_credentials, grpc_ssl_server_certificate_config** config) {
  State& state = *static_cast<State*>(state_of_credentials);
  const AccessControl::NumberedTlsFiles newest = state.access.tls_files();
  const std::lock_guard lock(state.mutex);
  if (newest.number == state.fetched) {
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
  }
  state.fetched = newest.number;
  const grpc_ssl_pem_key_cert_pair pair = {
      .private_key = newest.files->key.c_str(),
      .cert_chain = newest.files->cert.c_str()};
  // gRPC aborts without a certificate here, even if it will not ask clients for
  // theirs. It then does not use this one.
  *config = grpc_ssl_server_certificate_config_create(
      newest.files->client_ca.value_or(newest.files->cert).c_str(), &pair, 1);
  return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
}

grpc_server_credentials* MakeTls(State* state) {
  return grpc_ssl_server_credentials_create_with_options(
      grpc_ssl_server_credentials_create_options_using_config_fetcher(
          state->access.needs_client_certificates()
              ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
              : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
          FetchTlsFiles, state));
}

// gRPC's own class for TLS whose files can change drops the certificate in use
// before it tries the new one, and does not notice a key that belongs to
// another certificate. Its class for plain text aborts the process if it has to
// check tokens. The functions in C that both use have neither problem.
class Credentials final : public grpc::ServerCredentials {
 public:
  Credentials(const AccessControl& access, bool tls) {
    auto* const state = new State(access);
    credentials_ =
        tls ? MakeTls(state) : grpc_insecure_server_credentials_create();
    // gRPC destroys the state together with its credentials, even if it does
    // not have to check tokens.
    grpc_server_credentials_set_auth_metadata_processor(
        credentials_,
        {.process = access.needs_tokens() ? CheckToken : nullptr,
         .destroy = [](void* old) { delete static_cast<State*>(old); },
         .state = state});
  }
  ~Credentials() override { grpc_server_credentials_release(credentials_); }
  Credentials(const Credentials&) = delete;
  Credentials& operator=(const Credentials&) = delete;

  // Nothing calls it, because the constructor sets what checks tokens.
  void SetAuthMetadataProcessor(
      const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address,
                      grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  grpc_server_credentials* credentials_ = nullptr;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    const AccessControl& access, bool tls) {
  // gRPC's own class skips the step that reads the metadata of calls.
  if (!tls && !access.needs_tokens()) return grpc::InsecureServerCredentials();
  return std::make_shared<Credentials>(access, tls);
}

}  // namespace attnd::server
