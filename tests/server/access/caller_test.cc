#include "server/access/caller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/support/channel_arguments.h"
#include "server/access/access_control.h"
#include "server/access/server_credentials.h"
#include "tests/server/access/certificates.h"

namespace attnd::server {
namespace {

// Answers every call, and remembers who made it.
class Asker final : public grpc::CallbackGenericService {
 public:
  explicit Asker(const AccessControl* access) : access_(access) {}

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* rpc) override {
    identity = IdentityOf(*rpc, access_);
    is_admin = CheckIsAdmin(*rpc, access_);
    return new Reactor;
  }

  std::optional<std::string> identity;
  absl::Status is_admin;

 private:
  class Reactor final : public grpc::ServerGenericBidiReactor {
   public:
    Reactor() { Finish(grpc::Status::OK); }
    void OnDone() override { delete this; }
  };

  const AccessControl* const access_;
};

class CallerTest : public ::testing::Test {
 protected:
  void TearDown() override {
    if (server_) server_->Shutdown();
  }

  // Writes a file for the running test, and returns its path.
  static std::string File(const std::string& name, const std::string& text) {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string path =
        absl::StrCat(::testing::TempDir(), "attnd_", test->name(), "_", name);
    std::ofstream(path) << text;
    return path;
  }
  // Two tokens: "abc" is that of a user, and "" hashed is not a token.
  static std::string TokenFile() {
    return File(
        "tokens",
        "alice "
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad "
        "user\n"
        // "def"
        "root cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34 "
        "admin\n");
  }

  // Serves with these options, over TLS if they have a certificate.
  void Serve(const AccessOptions& options) {
    auto access = AccessControl::Start(options);
    ASSERT_TRUE(access.ok()) << access.status();
    access_ = *std::move(access);
    asker_.emplace(access_.get());
    grpc::ServerBuilder builder;
    builder.AddListeningPort(
        "127.0.0.1:0",
        MakeServerCredentials(*access_, /*tls=*/access_->has_tls()), &port_);
    builder.RegisterCallbackGenericService(&*asker_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }

  AccessOptions Tls() const {
    return {.tls = {.cert = File("cert", own_.certificate()),
                    .key = File("key", own_.key()),
                    .client_ca = {}},
            .token_file = {}};
  }

  // Makes a call over TLS if the server has it, with the certificate of the
  // client if there is one, and with this authorization unless it is empty.
  grpc::Status Call(const std::string& authorization,
                    const TestCertificate* client = nullptr) {
    grpc::ChannelArguments arguments;
    arguments.SetSslTargetNameOverride("server");
    arguments.SetInt("grpc.enable_http_proxy", 0);
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = own_.certificate();
    if (client != nullptr) {
      ssl.pem_private_key = client->key();
      ssl.pem_cert_chain = client->certificate();
    }
    grpc::GenericStub stub(grpc::CreateCustomChannel(
        absl::StrCat("127.0.0.1:", port_),
        access_->has_tls() ? grpc::SslCredentials(ssl)
                           : grpc::InsecureChannelCredentials(),
        arguments));
    grpc::ClientContext context;
    if (!authorization.empty()) {
      context.AddMetadata("authorization", authorization);
    }
    grpc::CompletionQueue queue;
    const grpc::ByteBuffer request;
    const auto reader =
        stub.PrepareUnaryCall(&context, "/any/Method", request, &queue);
    grpc::ByteBuffer response;
    grpc::Status status;
    reader->StartCall();
    reader->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    return status;
  }

  const TestCertificate own_{"server"};
  std::optional<Asker> asker_;

 private:
  std::unique_ptr<AccessControl> access_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

TEST_F(CallerTest, NobodyHasANameWithoutAccessControl) {
  Serve({});
  Call("Bearer abc");
  EXPECT_EQ(asker_->identity, std::nullopt);
  EXPECT_TRUE(asker_->is_admin.ok());
}

TEST_F(CallerTest, ATokenGivesNameAndRole) {
  Serve({.tls = {}, .token_file = TokenFile()});
  Call("Bearer abc");
  EXPECT_EQ(asker_->identity, "alice");
  EXPECT_EQ(asker_->is_admin.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReasonOf(asker_->is_admin), "ADMIN_ROLE_REQUIRED");
  Call("bearer def");
  EXPECT_EQ(asker_->identity, "root");
  EXPECT_TRUE(asker_->is_admin.ok());
}

TEST_F(CallerTest, GrpcRefusesACallWithoutAToken) {
  Serve({.tls = {}, .token_file = TokenFile()});
  for (const char* const authorization : {"", "Bearer", "Bearer ghi", "abc"}) {
    const grpc::Status status = Call(authorization);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED)
        << authorization;
    EXPECT_THAT(status.error_message(),
                ::testing::StartsWith("authorization: "));
  }
}

TEST_F(CallerTest, TlsAloneGivesNoName) {
  Serve(Tls());
  Call("Bearer abc");
  EXPECT_EQ(asker_->identity, std::nullopt);
  EXPECT_TRUE(asker_->is_admin.ok());
}

TEST_F(CallerTest, ACertificateGivesItsFirstAlternativeName) {
  const TestCertificate client("common", 3600, "DNS:first.example,DNS:second");
  AccessOptions options = Tls();
  options.tls.client_ca = File("ca", client.certificate());
  Serve(options);
  EXPECT_TRUE(Call("", &client).error_message().empty());
  EXPECT_EQ(asker_->identity, "first.example");
  EXPECT_TRUE(asker_->is_admin.ok());
}

TEST_F(CallerTest, ACertificateWithoutAlternativeNamesGivesItsCommonName) {
  const TestCertificate client("common");
  AccessOptions options = Tls();
  options.tls.client_ca = File("ca", client.certificate());
  Serve(options);
  Call("", &client);
  EXPECT_EQ(asker_->identity, "common");
}

TEST_F(CallerTest, TheNameOfATokenPrecedesThatOfACertificate) {
  const TestCertificate client("common");
  AccessOptions options = Tls();
  options.tls.client_ca = File("ca", client.certificate());
  options.token_file = TokenFile();
  Serve(options);
  EXPECT_EQ(Call("", &client).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  Call("Bearer abc", &client);
  EXPECT_EQ(asker_->identity, "alice");
}

}  // namespace
}  // namespace attnd::server
