// Tests how the client enters servers that use TLS or ask for tokens.
#include "client/access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/attention_client.h"
#include "client/error_details.h"
#include "tests/client/fake_server.h"
#include "tests/client/small_problem.h"
#include "tests/client/test_certificates.h"

namespace attnd::client {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Answers only calls that have the token that the test sets.
class TokenHandler final : public FakeHandler {
 public:
  explicit TokenHandler(std::string token) : token_(std::move(token)) {}

  bool Admits(const std::string& authorization) override {
    const std::lock_guard lock(mutex_);
    seen_.push_back(authorization);
    return authorization == "Bearer " + token_;
  }
  void SetToken(std::string token) {
    const std::lock_guard lock(mutex_);
    token_ = std::move(token);
  }
  std::vector<std::string> seen() {
    const std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  std::mutex mutex_;
  std::string token_;
  std::vector<std::string> seen_;
};

class AccessTest : public testing::Test {
 protected:
  AccessTest() {
    folder_ = testing::TempDir() + "access_" +
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
  }
  ~AccessTest() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = absl::StrCat(folder_, "/", name);
    std::ofstream(path + ".new") << text;
    std::filesystem::rename(path + ".new", path);  // as programs should
    return path;
  }

  // Returns the error of a call that makes only one attempt.
  static absl::Status ErrorOf(ClientOptions options) {
    options.retry.max_attempts = 1;
    return AttentionClient(std::move(options)).GetServerInfo().status();
  }

  FakeHandler handler_;
  TestAuthority authority_;
  TestAuthority other_authority_;
  TestIdentity identity_ = authority_.Issue("DNS:localhost,IP:127.0.0.1");
  std::string folder_;
};

TEST_F(AccessTest, EntersAServerWithTls) {
  const FakeServer server(&handler_, "127.0.0.1:0",
                          FakeTls{identity_.cert, identity_.key});
  // A text and a path of a file are both accepted.
  for (const std::string& ca :
       {authority_.cert(), Write("ca.pem", authority_.cert())}) {
    EXPECT_EQ(ErrorOf({.target = server.target(), .tls = TlsOptions{.ca = ca}}),
              absl::OkStatus());
  }
}

TEST_F(AccessTest, TlsAlsoWorksOnAUnixSocket) {
  const FakeServer server(&handler_, absl::StrCat("unix:", folder_, "/socket"),
                          FakeTls{identity_.cert, identity_.key});
  EXPECT_EQ(ErrorOf({.target = server.target(),
                     .tls = TlsOptions{.ca = authority_.cert()}}),
            absl::OkStatus());
}

TEST_F(AccessTest, SaysWhatAFailedHandshakeMayBeDueTo) {
  const TestIdentity expired =
      authority_.Issue("DNS:localhost,IP:127.0.0.1", /*expired=*/true);
  const TestIdentity elsewhere = authority_.Issue("DNS:elsewhere");
  const TestIdentity own = authority_.Issue("DNS:me");
  const TestIdentity foreign = other_authority_.Issue("DNS:me");
  const std::string ca = Write("ca.pem", authority_.cert());
  const std::string other_ca = Write("other.pem", other_authority_.cert());
  const std::string foreign_cert = Write("foreign.pem", foreign.cert);
  const FakeTls plain_tls{identity_.cert, identity_.key};
  const FakeTls mutual{identity_.cert, identity_.key, authority_.cert()};
  struct Case {
    std::optional<FakeTls> server;
    std::optional<TlsOptions> client;
    std::vector<std::string> texts;  // none if the call succeeds
  };
  const std::vector<Case> cases = {
      {plain_tls, TlsOptions{.ca = other_ca}, {other_ca, "not signed by"}},
      {plain_tls, TlsOptions{}, {"the system's list", "tls.ca"}},
      {FakeTls{expired.cert, expired.key},
       TlsOptions{.ca = ca},
       {"not valid now"}},
      {FakeTls{elsewhere.cert, elsewhere.key},
       TlsOptions{.ca = ca},
       {"for another name", "tls.server_name"}},
      {FakeTls{elsewhere.cert, elsewhere.key},
       TlsOptions{.ca = ca, .server_name = "elsewhere"},
       {}},
      {mutual, TlsOptions{.ca = ca}, {"client certificate", "tls.cert"}},
      {mutual,
       TlsOptions{.ca = ca, .cert = foreign_cert, .key = foreign.key},
       {"may not accept", foreign_cert}},
      {mutual, TlsOptions{.ca = ca, .cert = own.cert, .key = own.key}, {}},
      {std::nullopt, TlsOptions{.ca = ca}, {"does not seem to use TLS"}},
      {plain_tls, std::nullopt, {"may require TLS"}},
      {std::nullopt, std::nullopt, {}}};
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    const FakeServer server(&handler_, "127.0.0.1:0", cases[i].server);
    const absl::Status status =
        ErrorOf({.target = server.target(), .tls = cases[i].client});
    EXPECT_EQ(status.code(), cases[i].texts.empty()
                                 ? absl::StatusCode::kOk
                                 : absl::StatusCode::kUnavailable)
        << status;
    for (const std::string& text : cases[i].texts) {
      EXPECT_THAT(status.message(), HasSubstr(text));
    }
  }
}

TEST_F(AccessTest, NamesTheFileThatIsWrong) {
  const TestIdentity other = authority_.Issue("DNS:me");
  const std::string garbage = Write("garbage", "no PEM");
  const std::string cert = Write("cert.pem", identity_.cert);
  const std::string key = Write("key.pem", identity_.key);
  const std::string other_key = Write("other.key", other.key);
  const std::string none = folder_ + "/none";
  struct Case {
    TlsOptions tls;
    std::string field;
    std::vector<std::string> texts;
  };
  const std::vector<Case> cases = {
      {{.ca = none}, "tls.ca", {none, "No such file"}},
      {{.ca = garbage}, "tls.ca", {garbage, "certificates in PEM"}},
      {{.ca = key}, "tls.ca", {key}},
      {{.cert = cert}, "tls.key", {"got nothing"}},
      {{.key = key}, "tls.cert", {"got nothing"}},
      {{.cert = cert, .key = none}, "tls.key", {none, "No such file"}},
      {{.cert = key, .key = key}, "tls.cert", {key}},
      {{.cert = cert, .key = cert}, "tls.key", {cert}},
      {{.cert = cert, .key = other_key}, "tls.key", {cert, other_key}},
      {{.cert = cert, .key = other.key}, "tls.key", {cert, "the given text"}}};
  for (const Case& wrong : cases) {
    const absl::Status status =
        ErrorOf({.target = "unix:none", .tls = wrong.tls});
    SCOPED_TRACE(status.ToString());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    const ErrorDetails details = DetailsOf(status);
    ASSERT_EQ(details.field_violations.size(), 1U);
    EXPECT_EQ(details.field_violations[0].field, wrong.field);
    for (const std::string& text : wrong.texts) {
      EXPECT_THAT(status.message(), HasSubstr(text));
    }
    EXPECT_THAT(status.message(), Not(HasSubstr("PRIVATE KEY")));
  }
}

// Makes one call of each kind.
std::vector<absl::Status> CallEverything(const AttentionClient& client) {
  SmallProblem problem;
  std::vector<absl::Status> errors = {
      client.Attention(problem.inputs(), problem.outputs()).status(),
      client.GetServerInfo().status(),
      client.EstimateMemory({.seq_len = 8}).status(),
      client.Benchmark({.num_vectors = 8}, nullptr).status()};
  std::atomic<bool> done = false;
  absl::Status async_error;
  client.AttentionAsync(problem.inputs(), problem.outputs(), {},
                        [&](const absl::StatusOr<AttentionReply>& reply) {
                          async_error = reply.status();
                          done = true;
                          done.notify_one();
                        });
  done.wait(false);
  errors.push_back(async_error);
  return errors;
}

TEST_F(AccessTest, SendsTheTokenWithEachCall) {
  TokenHandler handler("secret-1");
  const FakeServer server(&handler);
  const AttentionClient client(
      {.target = server.target(), .token = "secret-1"});
  EXPECT_THAT(CallEverything(client), Each(absl::OkStatus()));
  EXPECT_THAT(handler.seen(), Each("Bearer secret-1"));
}

// These calls use another way to send their messages.
TEST_F(AccessTest, SendsTheTokenWithEachStream) {
  TokenHandler handler("secret-1");
  const FakeServer server(&handler);
  // So small that each request is streamed.
  const AttentionClient client({.target = server.target(),
                                .max_message_bytes = 1 << 16,
                                .token = "secret-1"});
  const std::vector<float> sequence(1 << 16, 1);
  std::vector<float> output(1 << 16);
  const ConstTensor tensor{sequence, {1 << 12, 16}};
  EXPECT_EQ(client.SelfAttention(tensor, {.output = output}).status(),
            absl::OkStatus());
  std::atomic<bool> done = false;
  absl::Status error;
  client.SelfAttentionAsync(tensor, {.output = output}, {},
                            [&](const absl::StatusOr<AttentionReply>& reply) {
                              error = reply.status();
                              done = true;
                              done.notify_one();
                            });
  done.wait(false);
  EXPECT_EQ(error, absl::OkStatus());
  EXPECT_THAT(handler.seen(), Each("Bearer secret-1"));
}

TEST_F(AccessTest, WithoutTheRightTokenEveryCallFailsOnce) {
  TokenHandler handler("secret-1");
  const FakeServer server(&handler);
  for (const std::string token : {"", "secret-2"}) {
    const AttentionClient client({.target = server.target(), .token = token});
    const size_t before = handler.seen().size();
    for (const absl::Status& error : CallEverything(client)) {
      EXPECT_EQ(error.code(), absl::StatusCode::kUnauthenticated) << error;
      EXPECT_THAT(error.message(), Not(HasSubstr("secret")));
    }
    EXPECT_EQ(handler.seen().size(), before + 5);  // there were no retries
    // A health check needs no token.
    EXPECT_EQ(client.CheckHealth().value_or(Health::kUnknown),
              Health::kServing);
  }
}

TEST_F(AccessTest, ANewTokenInTheFileTakesEffect) {
  TokenHandler handler("old");
  const FakeServer server(&handler);
  const std::string path = Write("token", " old\n");
  const AttentionClient client({.target = server.target(), .token_file = path});
  EXPECT_EQ(client.GetServerInfo().status(), absl::OkStatus());

  // While the file has no token, the old one stays.
  for (const std::string nothing : {"", "two words"}) {
    Write("token", nothing);
    absl::SleepFor(absl::Milliseconds(1100));  // longer than it is kept
    EXPECT_EQ(client.GetServerInfo().status(), absl::OkStatus());
  }
  std::filesystem::remove(path);
  absl::SleepFor(absl::Milliseconds(1100));
  EXPECT_EQ(client.GetServerInfo().status(), absl::OkStatus());

  handler.SetToken("new");
  EXPECT_EQ(client.GetServerInfo().status().code(),
            absl::StatusCode::kUnauthenticated);
  Write("token", "new");
  const absl::Time limit = absl::Now() + absl::Seconds(60);
  while (!client.GetServerInfo().ok() && absl::Now() < limit) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_EQ(client.GetServerInfo().status(), absl::OkStatus());
}

TEST_F(AccessTest, RefusesTokensThatNoHeaderCanHold) {
  struct Case {
    std::string token;
    std::string file;
    std::string text;
  };
  // Nobody writes to it, so that reading it would never end.
  const std::string pipe = folder_ + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const std::vector<Case> cases = {
      {"secret\n", "", "token: expected 1 to 4096 visible ASCII"},
      {"secret 1", "", "other characters"},
      {"secret\xc3\xa4", "", "other characters"},
      {std::string(4097, 's'), "", "4097 characters"},
      {"secret", Write("t", "secret"), "because token is set"},
      {"", folder_ + "/none", "No such file"},
      {"", pipe, "it is not a regular file"},
      {"", Write("empty", "\n"), "nothing in "},
      {"", Write("two", "secret\nsecret"), "other characters in "}};
  for (const Case& wrong : cases) {
    const absl::Status status = ErrorOf({.target = "unix:none",
                                         .token = wrong.token,
                                         .token_file = wrong.file});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr(wrong.text), Not(HasSubstr("secret"))));
  }
}

TEST_F(AccessTest, TokensGoInPlainTextOnlyToThisHostUnlessAllowed) {
  for (const char* target :
       {"unix:/run/attnd.sock", "unix-abstract:name", "127.0.0.1:50051",
        "127.1.2.3", "localhost:50051", "LocalHost", "[::1]:50051",
        "dns:///localhost:50051", "dns:localhost", "dns://8.8.8.8/localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:50051", "::1"}) {
    EXPECT_TRUE(StaysOnThisHost(target)) << target;
  }
  for (const char* target :
       {"attnd:50051", "10.0.0.1:50051", "dns:///attnd:50051", "",
        "dns:", "ipv4:127.0.0.1:1,10.0.0.1:1", "[2001:db8::1]:50051",
        "ipv6:[::]:1", "127.0.0.1.example:50051", "localhost.example:1",
        "0.0.0.0:50051", "xds:///attnd", "dns://localhost/attnd:50051",
        "2001:db8::1", "ipv4:127.0.0.1:1,", "1127.0.0.1:1"}) {
    EXPECT_FALSE(StaysOnThisHost(target)) << target;
    ClientOptions options{.target = target, .token = "secret"};
    EXPECT_THAT(
        Access::Load(options).status().message(),
        AllOf(HasSubstr("allow_plaintext_token"), Not(HasSubstr("secret"))));
    options.allow_plaintext_token = true;
    EXPECT_TRUE(Access::Load(options).ok());
    options.allow_plaintext_token = false;
    options.tls = TlsOptions();
    EXPECT_TRUE(Access::Load(options).ok());
    options = {.target = target};
    EXPECT_TRUE(Access::Load(options).ok());
  }
}

TEST(OnlyHealthyTest, CallsOnlyServersThatServe) {
  FakeHandler first_handler;
  FakeHandler second_handler;
  FakeServer first(&first_handler);
  const FakeServer second(&second_handler);
  const std::string both =
      absl::StrCat("ipv4:", first.target(), ",", second.target());
  const AttentionClient client({.target = both, .retry = {.max_attempts = 1}});
  const AttentionClient any(
      {.target = both, .retry = {.max_attempts = 1}, .only_healthy = false});
  SmallProblem problem;
  const auto call = [&problem](const AttentionClient& caller, int times) {
    for (int i = 0; i < times; ++i) {
      ASSERT_EQ(caller.Attention(problem.inputs(), problem.outputs()).status(),
                absl::OkStatus());
    }
  };
  // Both servers get calls. How soon the second one does is up to gRPC.
  const absl::Time limit = absl::Now() + absl::Seconds(60);
  while ((first_handler.calls().empty() || second_handler.calls().empty()) &&
         absl::Now() < limit) {
    call(client, 1);
  }
  ASSERT_THAT(first_handler.calls(), Not(IsEmpty()));
  ASSERT_THAT(second_handler.calls(), Not(IsEmpty()));

  first.SetServing(false);
  // The client hears of this soon. No call fails meanwhile.
  size_t count = first_handler.calls().size();
  for (;;) {
    call(client, 20);
    if (first_handler.calls().size() == count) break;
    ASSERT_LT(absl::Now(), limit);
    count = first_handler.calls().size();
  }
  call(any, 20);
  EXPECT_GT(first_handler.calls().size(), count);

  first.SetServing(true);
  count = first_handler.calls().size();
  while (first_handler.calls().size() == count && absl::Now() < limit) {
    call(client, 1);
  }
  EXPECT_GT(first_handler.calls().size(), count);
}

}  // namespace
}  // namespace attnd::client
