// Tests attnctl with servers that use TLS and ask for tokens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/attnctl/attnctl.h"
#include "client/attnctl/exit_codes.h"
#include "client/attnctl/npy.h"
#include "tests/client/fake_server.h"
#include "tests/client/test_certificates.h"

namespace attnd::attnctl {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class AttnctlAccessTest : public testing::Test {
 protected:
  struct Outcome {
    int exit_code = -1;
    std::string err;
  };

  // Admits calls with the token "secret".
  class Handler final : public client::FakeHandler {
   public:
    bool Admits(const std::string& authorization) override {
      return authorization == "Bearer secret";
    }
  };

  AttnctlAccessTest() {
    folder_ = testing::TempDir() + "attnctl_access_" +
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
    ca_ = Write("ca.pem", authority_.cert());
    cert_ = Write("client.pem", own_.cert);
    key_ = Write("client.key", own_.key);
    token_ = Write("token", "secret\n");
  }
  ~AttnctlAccessTest() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = absl::StrCat(folder_, "/", name);
    std::ofstream(path) << text;
    return path;
  }

  static Outcome Run(std::vector<std::string> arguments,
                     const std::vector<std::string>& more = {}) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    std::ostringstream out;
    std::ostringstream err;
    Outcome outcome;
    outcome.exit_code = RunAttnctl(arguments, out, err, false);
    outcome.err = err.str();
    return outcome;
  }

  // Returns the flags with which every call succeeds.
  std::vector<std::string> Flags() const {
    return {"--tls-ca=" + ca_, "--tls-cert=" + cert_, "--tls-key=" + key_,
            "--token-file=" + token_, "--server=" + server_.target()};
  }

  client::TestAuthority authority_;
  client::TestIdentity identity_ = authority_.Issue("IP:127.0.0.1");
  client::TestIdentity own_ = authority_.Issue("DNS:me");
  Handler handler_;
  client::FakeServer server_{
      &handler_, "127.0.0.1:0",
      client::FakeTls{identity_.cert, identity_.key, authority_.cert()}};
  std::string folder_, ca_, cert_, key_, token_;
};

TEST_F(AttnctlAccessTest, EveryCommandEnters) {
  const std::vector<float> numbers(8, 1);
  const auto bytes = std::as_bytes(std::span(numbers));
  const std::string tensor = folder_ + "/tensor.npy";
  const std::string lse = folder_ + "/lse.npy";
  ASSERT_TRUE(WriteNpy(tensor, client::DataType::kF32, {4, 2}, bytes).ok());
  ASSERT_TRUE(WriteNpy(lse, client::DataType::kF32, {4}, bytes.first(16)).ok());
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{
           {"info"},
           {"health"},
           {"top", "--once", "--interval=0.1"},
           {"bench", "--num-vectors=8"},
           {"estimate", "--seq-len=8"},
           {"attention", "-q", tensor, "-k", tensor, "-v", tensor},
           {"self", "--sequence=" + tensor},
           {"cross", "--queries=" + tensor, "--kv-sequence=" + tensor},
           {"backward", "-q", tensor, "-k", tensor, "-v", tensor, "--output",
            tensor, "--lse", lse, "--grad-output", tensor}}) {
    SCOPED_TRACE(absl::StrJoin(command, " "));
    const Outcome entered = Run(command, Flags());
    EXPECT_EQ(entered.exit_code, kOk) << entered.err;

    // A later flag replaces the file of the token.
    if (command[0] == "health") continue;
    std::vector<std::string> flags = Flags();
    flags[3] = "--token-file=" + Write("wrong", "mistaken");
    const Outcome refused = Run(command, flags);
    EXPECT_EQ(refused.exit_code, kCallFailed) << refused.err;
    EXPECT_THAT(refused.err,
                AllOf(HasSubstr("UNAUTHENTICATED: who are you?"),
                      HasSubstr("token:  from " + folder_ + "/wrong"),
                      Not(HasSubstr("mistaken"))));
  }
}

TEST_F(AttnctlAccessTest, SaysHowToSendAToken) {
  std::vector<std::string> flags = Flags();
  flags.erase(flags.begin() + 3);
  const Outcome refused = Run({"info"}, flags);
  EXPECT_EQ(refused.exit_code, kCallFailed);
  EXPECT_THAT(refused.err,
              HasSubstr("  token:  none; --token-file=FILE sends one\n"));
}

TEST_F(AttnctlAccessTest, AFailedHandshakeIsNoServer) {
  const client::TestAuthority other;
  std::vector<std::string> flags = Flags();
  flags[0] = "--tls-ca=" + Write("other.pem", other.cert());
  const Outcome outcome = Run({"info"}, flags);
  EXPECT_EQ(outcome.exit_code, kUnavailable);
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr("not signed by an authority in --tls-ca, "),
                    HasSubstr("other.pem")));
  // Without any certificate of an authority, those of the system decide.
  const Outcome system = Run({"info", "--tls", "--server=" + server_.target()});
  EXPECT_EQ(system.exit_code, kUnavailable);
  EXPECT_THAT(system.err, HasSubstr("the system's list (--tls-ca names"));
}

TEST_F(AttnctlAccessTest, VariablesReplaceFlags) {
  const std::vector<std::pair<const char*, std::string>> variables = {
      {"ATTNCTL_TLS_CA", ca_},
      {"ATTNCTL_TLS_CERT", cert_},
      {"ATTNCTL_TLS_KEY", key_},
      {"ATTNCTL_TOKEN_FILE", token_}};
  for (const auto& [name, value] : variables) {
    ASSERT_EQ(setenv(name, value.c_str(), 1), 0);
  }
  // These are for the server in the same container.
  ASSERT_EQ(setenv("ATTND_TOKEN_FILE", cert_.c_str(), 1), 0);
  ASSERT_EQ(setenv("ATTND_TLS_CERT", key_.c_str(), 1), 0);
  const Outcome entered = Run({"info", "--server=" + server_.target()});
  EXPECT_EQ(entered.exit_code, kOk) << entered.err;
  for (const auto& [name, value] : variables) unsetenv(name);
  unsetenv("ATTND_TOKEN_FILE");
  unsetenv("ATTND_TLS_CERT");
}

TEST_F(AttnctlAccessTest, WrongFilesAreNamed) {
  const std::string none = folder_ + "/none";
  for (const std::string flag :
       {"--tls-ca", "--tls-cert", "--tls-key", "--token-file"}) {
    const Outcome outcome = Run({"info", absl::StrCat(flag, "=", none)});
    EXPECT_EQ(outcome.exit_code, kUsage) << flag;
    EXPECT_THAT(outcome.err, AllOf(HasSubstr(flag), HasSubstr(none)));
  }
  // The name of a file is not that of a flag.
  const std::string named_alike = Write("tls.ca", "nothing");
  const Outcome no_pem = Run({"info", "--tls-ca=" + named_alike});
  EXPECT_EQ(no_pem.exit_code, kUsage);
  EXPECT_THAT(no_pem.err, AllOf(HasSubstr(": --tls-ca: expected certificates"),
                                HasSubstr("/tls.ca\"")));
  const Outcome no_key = Run({"info", "--tls-cert=" + cert_});
  EXPECT_EQ(no_key.exit_code, kUsage);
  EXPECT_THAT(no_key.err, AllOf(HasSubstr("field:  --tls-key"),
                                HasSubstr("key of --tls-cert")));
}

TEST_F(AttnctlAccessTest, NoCommandRunsWithAWrongArgument) {
  const std::string no_pem = Write("no_pem", "nothing");
  for (const std::vector<std::string>& command :
       std::vector<std::vector<std::string>>{{"info"},
                                             {"health"},
                                             {"top", "--once"},
                                             {"top", "--json"},
                                             {"bench"},
                                             {"estimate", "--seq-len=8"}}) {
    SCOPED_TRACE(absl::StrJoin(command, " "));
    const Outcome outcome = Run(command, {"--tls-ca=" + no_pem});
    EXPECT_EQ(outcome.exit_code, kUsage) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("field:  --tls-ca"));
  }
}

TEST_F(AttnctlAccessTest, SaysThatAUnixSocketHasNoTls) {
  const client::FakeServer plain(&handler_,
                                 absl::StrCat("unix:", folder_, "/socket"));
  ASSERT_EQ(setenv("ATTNCTL_TLS_CA", ca_.c_str(), 1), 0);
  const Outcome outcome = Run({"info", "--server=" + plain.target()});
  unsetenv("ATTNCTL_TLS_CA");
  EXPECT_EQ(outcome.exit_code, kUnavailable);
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr("the server does not seem to use TLS\n"),
                    HasSubstr("ATTNCTL_TLS"),
                    HasSubstr("attnd has no TLS on unix sockets\n")));
}

TEST_F(AttnctlAccessTest, RefusesToSendATokenInPlainText) {
  const std::vector<std::string> command = {"info", "--server=server.invalid:1",
                                            "--token-file=" + token_,
                                            "--deadline=20"};
  const Outcome refused = Run(command);
  EXPECT_EQ(refused.exit_code, kUsage);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("field:  --tls\n"),
                                 HasSubstr("(--allow-plaintext-token ")));
  EXPECT_EQ(Run(command, {"--allow-plaintext-token"}).exit_code, kUnavailable);
}

}  // namespace
}  // namespace attnd::attnctl
