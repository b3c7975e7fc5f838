#include "server/access/access_control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/access/tls_files.h"
#include "tests/server/access/certificates.h"
#include "tests/support/eventually.h"

namespace attnd::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TlsPaths SomeTlsPaths() {
  return {.cert = "/c.pem", .key = "/k.pem", .client_ca = "/a"};
}

std::string TlsErrorOf(const TlsFiles& files) {
  return std::string(CheckTlsFiles(files, SomeTlsPaths()).status().message());
}

TEST(TlsFilesTest, AcceptAPairAndTellWhenItExpires) {
  const TestCertificate one("one");
  const auto not_after = CheckTlsFiles(
      {.cert = one.certificate(), .key = one.key(), .client_ca = {}},
      SomeTlsPaths());
  ASSERT_TRUE(not_after.ok()) << not_after.status();
  const auto left = *not_after - std::chrono::system_clock::now();
  EXPECT_GT(left, std::chrono::minutes(50));
  EXPECT_LE(left, std::chrono::minutes(60));
}

TEST(TlsFilesTest, AcceptAChainAndAuthorities) {
  const TestCertificate one("one");
  const TestCertificate two("two");
  EXPECT_EQ(TlsErrorOf({.cert = one.certificate() + two.certificate(),
                        .key = one.key(),
                        .client_ca = one.certificate() + two.certificate()}),
            "");
}

TEST(TlsFilesTest, TheKeyHasToBelongToTheFirstCertificate) {
  const TestCertificate one("one");
  const TestCertificate two("two");
  EXPECT_THAT(TlsErrorOf({.cert = one.certificate() + two.certificate(),
                          .key = two.key(),
                          .client_ca = {}}),
              "--tls-key: /k.pem: the private key does not belong to the first "
              "certificate of --tls-cert, /c.pem");
}

TEST(TlsFilesTest, EveryCutIsAnError) {
  const TestCertificate one("one");
  const TestCertificate two("two");
  const std::string cert = one.certificate();
  const std::string chain = cert + two.certificate();
  const std::string key = one.key();
  const size_t begin_line = std::string("-----BEGIN CERTIFICATE-----").size();
  // Without its last newline, a file is complete.
  for (size_t bytes = 0; bytes + 1 < chain.size(); ++bytes) {
    // A cut before the second certificate leaves a shorter chain.
    if (bytes + 1 >= cert.size() && bytes < cert.size() + begin_line) continue;
    EXPECT_THAT(
        TlsErrorOf(
            {.cert = chain.substr(0, bytes), .key = key, .client_ca = {}}),
        HasSubstr("--tls-cert: /c.pem: "))
        << bytes;
  }
  for (size_t bytes = 0; bytes + 1 < key.size(); ++bytes) {
    EXPECT_THAT(
        TlsErrorOf(
            {.cert = chain, .key = key.substr(0, bytes), .client_ca = {}}),
        HasSubstr("--tls-key: /k.pem: "))
        << bytes;
  }
}

TEST(TlsFilesTest, ErrorsShowNothingOfTheKey) {
  const TestCertificate one("one");
  std::string key = one.key();
  const std::string secret = key.substr(key.find('\n') + 1, 40);
  key.insert(key.size() / 2, "!");
  EXPECT_THAT(
      TlsErrorOf({.cert = one.certificate(), .key = key, .client_ca = {}}),
      AllOf(HasSubstr("--tls-key: "), Not(HasSubstr(secret))));
  EXPECT_THAT(TlsErrorOf({.cert = key, .key = key, .client_ca = {}}),
              AllOf(HasSubstr("--tls-cert: "), Not(HasSubstr(secret))));
}

TEST(TlsFilesTest, AKeyWithAPassphraseIsAnErrorAndAsksNobody) {
  const TestCertificate one("one");
  EXPECT_THAT(TlsErrorOf({.cert = one.certificate(),
                          .key = one.key("passphrase"),
                          .client_ca = {}}),
              HasSubstr("without a passphrase"));
}

TEST(TlsFilesTest, AnExpiredCertificateIsAnError) {
  const TestCertificate one("one", /*seconds=*/-60);
  EXPECT_THAT(
      TlsErrorOf(
          {.cert = one.certificate(), .key = one.key(), .client_ca = {}}),
      HasSubstr("--tls-cert: /c.pem: the certificate expired on 2"));
}

TEST(TlsFilesTest, AuthoritiesHaveToBeCertificates) {
  const TestCertificate one("one");
  for (const std::string& ca : {std::string(), one.key()}) {
    EXPECT_THAT(
        TlsErrorOf(
            {.cert = one.certificate(), .key = one.key(), .client_ca = ca}),
        HasSubstr("--tls-client-ca: /a: expected certificates"));
  }
}

TEST(TlsFilesTest, OneAuthorityHasToBeValidAtLeast) {
  const TestCertificate one("one");
  const TestCertificate old("old", /*seconds=*/-60);
  const auto error_of = [&](const std::string& ca) {
    return TlsErrorOf(
        {.cert = one.certificate(), .key = one.key(), .client_ca = ca});
  };
  EXPECT_THAT(error_of(old.certificate()),
              HasSubstr("--tls-client-ca: /a: every certificate has expired"));
  // A list for a change of authorities has old and new ones.
  EXPECT_EQ(error_of(old.certificate() + one.certificate()), "");
}

class AccessControlTest : public ::testing::Test {
 protected:
  AccessControlTest() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = ::testing::TempDir() + "attnd_access_" + test->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
  }
  ~AccessControlTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const {
    return folder_ + "/" + name;
  }
  // Replaces the file in one step, so that the server sees no half of it.
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name + ".new"), std::ios::trunc) << text;
    std::filesystem::rename(Path(name + ".new"), Path(name));
  }
  void WritePair(const TestCertificate& pair) const {
    Write("cert", pair.certificate());
    Write("key", pair.key());
  }
  std::unique_ptr<AccessControl> Start(const AccessOptions& options) const {
    auto access = AccessControl::Start(options);
    EXPECT_TRUE(access.ok()) << access.status();
    return *std::move(access);
  }
  static std::string ErrorOf(const AccessOptions& options) {
    return std::string(AccessControl::Start(options).status().message());
  }
  AccessOptions Tls() const {
    return {.tls = {.cert = Path("cert"), .key = Path("key"), .client_ca = {}},
            .token_file = {}};
  }
  AccessOptions Tokens() const {
    return {.tls = {}, .token_file = Path("tokens")};
  }
  // A line for the token "abc".
  static std::string Line(const std::string& name) {
    return name +
           " ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad "
           "user\n";
  }

 private:
  std::string folder_;
};

TEST_F(AccessControlTest, IsOffByDefault) {
  const auto access = Start({});
  EXPECT_FALSE(access->has_tls());
  EXPECT_FALSE(access->needs_client_certificates());
  EXPECT_FALSE(access->needs_tokens());
  EXPECT_FALSE(access->state().tls_not_after);
  access->Reload();
}

TEST_F(AccessControlTest, ACertificateNeedsAKeyAndTheOtherWayRound) {
  EXPECT_THAT(ErrorOf({.tls = {.cert = "/c", .key = {}, .client_ca = {}},
                       .token_file = {}}),
              HasSubstr("--tls-key: expected the file of the private key"));
  EXPECT_THAT(ErrorOf({.tls = {.cert = {}, .key = "/k", .client_ca = {}},
                       .token_file = {}}),
              HasSubstr("--tls-cert: expected the file of the certificate"));
  EXPECT_THAT(ErrorOf({.tls = {.cert = {}, .key = {}, .client_ca = "/a"},
                       .token_file = {}}),
              HasSubstr("--tls-cert: expected the file of the server's"));
}

TEST_F(AccessControlTest, AFileThatCannotBeReadIsAnErrorAtStart) {
  const TestCertificate one("one");
  Write("cert", one.certificate());
  EXPECT_THAT(ErrorOf(Tls()),
              absl::StrCat("--tls-key: ", Path("key"),
                           ": cannot read it: No such file or directory"));
  ASSERT_EQ(mkfifo(Path("key").c_str(), 0600), 0);
  EXPECT_THAT(ErrorOf(Tls()), HasSubstr("it is not a regular file"));
  std::filesystem::remove(Path("key"));
  Write("key", std::string((1 << 20) + 1, 'x'));
  EXPECT_THAT(ErrorOf(Tls()), HasSubstr("it is larger than 1 MiB"));
  Write("tokens", "alice\n");
  EXPECT_THAT(ErrorOf(Tokens()),
              HasSubstr(absl::StrCat("--token-file: ", Path("tokens"),
                                     ": line 1: expected three words")));
}

TEST_F(AccessControlTest, ThreadTakesANewPair) {
  const TestCertificate one("one");
  const TestCertificate two("two", /*seconds=*/7200);
  WritePair(one);
  const auto access = Start(Tls());
  const auto first = access->tls_files();
  const auto not_after = access->state().tls_not_after;
  WritePair(two);
  EXPECT_TRUE(testing::Eventually(
      [&] { return access->tls_files().files->cert == two.certificate(); }));
  EXPECT_GT(access->tls_files().number, first.number);
  EXPECT_GT(access->state().tls_not_after, not_after);
}

TEST_F(AccessControlTest, KeepsThePairUntilANewOneIsComplete) {
  const TestCertificate one("one");
  const TestCertificate two("two");
  WritePair(one);
  const auto access = Start(Tls());
  const auto failures = [&] { return access->state().tls_reload_failures; };
  const auto name = [&] {
    return access->tls_files().files->cert == one.certificate()   ? "one"
           : access->tls_files().files->cert == two.certificate() ? "two"
                                                                  : "other";
  };
  // The thread may be the one that finds a change, but a change is counted
  // once.
  Write("key", two.key());
  access->Reload();
  access->Reload();
  EXPECT_EQ(failures(), 1);
  EXPECT_STREQ(name(), "one");
  Write("cert", two.certificate().substr(0, 100));
  access->Reload();
  EXPECT_EQ(failures(), 2);
  EXPECT_STREQ(name(), "one");
  std::filesystem::remove(Path("cert"));
  access->Reload();
  access->Reload();
  EXPECT_EQ(failures(), 3);
  EXPECT_STREQ(name(), "one");
  EXPECT_TRUE(access->state().tls_files_refused);
  Write("cert", two.certificate());
  access->Reload();
  EXPECT_EQ(failures(), 3);
  EXPECT_STREQ(name(), "two");
  EXPECT_FALSE(access->state().tls_files_refused);
}

TEST_F(AccessControlTest, FollowsTheSymbolicLinksOfKubernetes) {
  const TestCertificate one("one");
  const TestCertificate two("two");
  for (const auto& [version, pair] : {std::pair("v1", &one), {"v2", &two}}) {
    std::filesystem::create_directory(Path(version));
    Write(absl::StrCat(version, "/cert"), pair->certificate());
    Write(absl::StrCat(version, "/key"), pair->key());
  }
  std::filesystem::create_symlink("v1", Path("..data"));
  std::filesystem::create_symlink("..data/cert", Path("cert"));
  std::filesystem::create_symlink("..data/key", Path("key"));
  const auto access = Start(Tls());
  std::filesystem::create_symlink("v2", Path("..data_tmp"));
  std::filesystem::rename(Path("..data_tmp"), Path("..data"));
  access->Reload();
  EXPECT_EQ(access->tls_files().files->cert, two.certificate());
}

TEST_F(AccessControlTest, KeepsTheTokensUntilANewListIsRight) {
  Write("tokens", Line("alice"));
  const auto access = Start(Tokens());
  EXPECT_EQ(access->tokens()->Find("abc")->name, "alice");
  for (const std::string wrong : {"", "alice\n"}) {
    Write("tokens", wrong);
    access->Reload();
    EXPECT_EQ(access->tokens()->Find("abc")->name, "alice");
    EXPECT_TRUE(access->state().token_file_refused);
  }
  EXPECT_EQ(access->state().token_reload_failures, 2);
  // The file is right again, with the contents that are in use.
  Write("tokens", Line("alice"));
  access->Reload();
  EXPECT_FALSE(access->state().token_file_refused);
  Write("tokens", Line("bob"));
  EXPECT_TRUE(testing::Eventually(
      [&] { return access->tokens()->Find("abc")->name == "bob"; }));
  EXPECT_EQ(access->state().token_reload_failures, 2);
}

}  // namespace
}  // namespace attnd::server
