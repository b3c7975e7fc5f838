#include "server/server_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/tracing/span_exporter.h"

namespace attnd::server {
namespace {

class ServerConfigTest : public ::testing::Test {
 protected:
  // Writes a file for the running test, and returns the flag that names it.
  std::string ConfigFlag(const std::string& text) {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    const std::string path =
        ::testing::TempDir() + "attnd_" + test->name() + ".conf";
    std::ofstream(path) << text;
    return "--config=" + path;
  }

  static ServerConfig Parse(const std::vector<std::string>& args,
                            const Environment& environment = {}) {
    const auto line = ParseConfig(args, environment);
    EXPECT_TRUE(line.ok()) << line.status();
    return line.ok() ? line->config : ServerConfig{};
  }
};

TEST_F(ServerConfigTest, Defaults) {
  const ServerConfig config = Parse({});
  EXPECT_EQ(config.listen, std::vector<std::string>{"127.0.0.1:50051"});
  EXPECT_EQ(config.threads, 0);
  EXPECT_EQ(config.max_message_bytes, 268435456);
  EXPECT_EQ(config.max_in_flight, 256);
  EXPECT_DOUBLE_EQ(config.max_benchmark_s, 60);
  EXPECT_EQ(config.log_format, "text");
}

TEST_F(ServerConfigTest, SpansNeedABuildWithOpenTelemetry) {
  EXPECT_EQ(Parse({}).trace_export, "none");
  EXPECT_EQ(Parse({"--trace-export=none"}).trace_export, "none");
  const auto otlp = ParseConfig({"--trace-export=otlp"}, {});
  if (SpanExporter::IsBuiltIn()) {
    ASSERT_TRUE(otlp.ok()) << otlp.status();
    EXPECT_EQ(otlp->config.trace_export, "otlp");
  } else {
    EXPECT_THAT(
        std::string(otlp.status().message()),
        ::testing::AllOf(
            ::testing::HasSubstr("--trace-export"),
            ::testing::HasSubstr("this build of attnd has no OpenTelemetry")));
  }
}

TEST_F(ServerConfigTest, TheLogHasOneOfTwoFormats) {
  EXPECT_EQ(Parse({"--log-format=json"}).log_format, "json");
  EXPECT_EQ(Parse({}, {{"ATTND_LOG_FORMAT", "json"}}).log_format, "json");
}

TEST_F(ServerConfigTest, ListensOnSeveralAddresses) {
  const std::vector<std::string> both = {"127.0.0.1:0", "unix:/tmp/x"};
  EXPECT_EQ(Parse({"--listen=127.0.0.1:0,unix:/tmp/x"}).listen, both);
  EXPECT_EQ(Parse({}, {{"ATTND_LISTEN", "127.0.0.1:0,unix:/tmp/x"}}).listen,
            both);
  EXPECT_EQ(Parse({ConfigFlag("listen = 127.0.0.1:0,unix:/tmp/x\n")}).listen,
            both);
  EXPECT_EQ(Parse({"--listen=[::1]:0"}).listen.front(), "[::1]:0");
}

TEST_F(ServerConfigTest, FileSets) {
  const std::string flag =
      ConfigFlag("threads = 3\nmax-in-flight = 7\ndrain-timeout = 1.5\n");
  const ServerConfig config = Parse({flag});
  EXPECT_EQ(config.threads, 3);
  EXPECT_EQ(config.max_in_flight, 7);
  EXPECT_DOUBLE_EQ(config.drain_timeout_s, 1.5);
}

TEST_F(ServerConfigTest, FlagOverEnvironmentOverFile) {
  const std::string flag =
      ConfigFlag("threads = 1\nmax-in-flight = 1\nmax-benchmark-vectors = 1\n");
  const Environment environment = {{"ATTND_THREADS", "2"},
                                   {"ATTND_MAX_IN_FLIGHT", "2"}};
  const ServerConfig config = Parse({flag, "--threads", "3"}, environment);
  EXPECT_EQ(config.threads, 3);
  EXPECT_EQ(config.max_in_flight, 2);
  EXPECT_EQ(config.max_benchmark_vectors, 1);
}

TEST_F(ServerConfigTest, TheEnvironmentMayNameTheFile) {
  const std::string flag = ConfigFlag("threads = 5\n");
  const std::string path = flag.substr(flag.find('=') + 1);
  EXPECT_EQ(Parse({}, {{"ATTND_CONFIG", path}}).threads, 5);
}

TEST_F(ServerConfigTest, EmptyAndForeignVariablesSetNothing) {
  const Environment environment = {{"ATTND_THREADS", ""},
                                   {"ATTND_SERVICE_HOST", "10.0.0.1"}};
  EXPECT_EQ(Parse({}, environment).threads, 0);
}

TEST_F(ServerConfigTest, AnEmptyValueTurnsTheAdminPortOff) {
  EXPECT_EQ(Parse({}).admin_listen, "127.0.0.1:50052");
  EXPECT_EQ(Parse({"--admin-listen=[::1]:0"}).admin_listen, "[::1]:0");
  EXPECT_EQ(Parse({"--admin-listen="}).admin_listen, "");
  EXPECT_EQ(Parse({"--admin-listen", ""}).admin_listen, "");
  EXPECT_EQ(Parse({}, {{"ATTND_ADMIN_LISTEN", ""}}).admin_listen, "");
  EXPECT_EQ(Parse({ConfigFlag("admin-listen = \"\"\n")}).admin_listen, "");
  EXPECT_EQ(Parse({ConfigFlag("admin-listen = \n")}).admin_listen, "");
  EXPECT_EQ(Parse({ConfigFlag("admin-listen = 127.0.0.1:7\n")}).admin_listen,
            "127.0.0.1:7");
  EXPECT_EQ(Parse({"--admin-listen=127.0.0.1:1"}, {{"ATTND_ADMIN_LISTEN", ""}})
                .admin_listen,
            "127.0.0.1:1");
  EXPECT_EQ(Parse({"--admin-listen="}, {{"ATTND_ADMIN_LISTEN", "127.0.0.1:1"}})
                .admin_listen,
            "");
  EXPECT_EQ(Parse({ConfigFlag("admin-listen = 127.0.0.1:7\n")},
                  {{"ATTND_ADMIN_LISTEN", ""}})
                .admin_listen,
            "");
}

TEST_F(ServerConfigTest, FilesOfAccessControl) {
  const ServerConfig off = Parse({});
  EXPECT_EQ(off.access.tls.cert, "");
  EXPECT_EQ(off.access.token_file, "");
  const ServerConfig on = Parse({"--tls-cert=/c", "--token-file=/t"},
                                {{"ATTND_TLS_KEY", "/k"},
                                 {"ATTND_TLS_CLIENT_CA", "/a"},
                                 {"ATTND_TOKEN_FILE", "/u"}});
  EXPECT_EQ(on.access.tls.cert, "/c");
  EXPECT_EQ(on.access.tls.key, "/k");
  EXPECT_EQ(on.access.tls.client_ca, "/a");
  EXPECT_EQ(on.access.token_file, "/t");
}

TEST_F(ServerConfigTest, EncryptedConnectionsTakeMoreMemory) {
  const MemoryShares shares{
      .budget_bytes = 0, .arriving_bytes = int64_t{512} << 20, .own_bytes = 0};
  EXPECT_EQ(DefaultConnections(shares, 1 << 20), 8192);
  EXPECT_EQ(DefaultConnections(shares, 1 << 20, /*tls=*/true), 1024);
  EXPECT_EQ(DefaultConnections(shares, 256, /*tls=*/true), 128);
}

TEST_F(ServerConfigTest, MisspeltVariablesAreUnknown) {
  EXPECT_THAT(UnknownVariables({{"ATTND_THREADS", "4"},
                                {"ATTND_CONFIG", "/etc/attnd.conf"},
                                {"ATTND_SERVER", "127.0.0.1:50051"},
                                {"ATTND_MEMORY_BUDGET", "1"}}),
              ::testing::ElementsAre("ATTND_MEMORY_BUDGET"));
  // Kubernetes would set an address as the host, and a URL together with the
  // port. So these variables are not from Kubernetes.
  EXPECT_THAT(UnknownVariables({{"ATTND_SERVICE_HOST", "localhost"},
                                {"ATTND_SERVICE_PORT_GRPC", "50052"}}),
              ::testing::SizeIs(2));
}

// The kubelet sets these variables in every pod of a namespace that has a
// Service attnd with two ports and a Service attnd-b with an IPv6 address.
TEST_F(ServerConfigTest, WhatKubernetesSetsIsPassedOver) {
  const Environment links = {{"ATTND_SERVICE_HOST", "10.0.0.1"},
                             {"ATTND_SERVICE_PORT", "50051"},
                             {"ATTND_SERVICE_PORT_GRPC", "50051"},
                             {"ATTND_SERVICE_PORT_OTHER", "80"},
                             {"ATTND_PORT", "tcp://10.0.0.1:50051"},
                             {"ATTND_PORT_50051_TCP", "tcp://10.0.0.1:50051"},
                             {"ATTND_PORT_50051_TCP_PROTO", "tcp"},
                             {"ATTND_PORT_50051_TCP_PORT", "50051"},
                             {"ATTND_PORT_50051_TCP_ADDR", "10.0.0.1"},
                             {"ATTND_PORT_80_UDP", "udp://10.0.0.1:80"},
                             {"ATTND_PORT_80_UDP_PORT", "80"},
                             {"ATTND_B_SERVICE_HOST", "fd00::1"},
                             {"ATTND_B_SERVICE_PORT", "7"},
                             {"ATTND_B_PORT", "tcp://[fd00::1]:7"},
                             {"ATTND_B_PORT_7_TCP_PORT", "7"}};
  EXPECT_THAT(UnknownVariables(links), ::testing::IsEmpty());
  Parse({}, links);
}

TEST_F(ServerConfigTest, APortThatKubernetesDidNotSetIsUnknown) {
  const Environment cases[] = {
      {{"ATTND_PORT", "50052"}},
      {{"ATTND_PORT", "127.0.0.1:50052"}},
      {{"ATTND_GRPC_PORT", "50052"}},
      {{"ATTND_LISTEN_PORT", "50052"}},
      {{"ATTND_SERVICE_PORT", "50052"}},
      {{"ATTND_SERVICE_PORT", "50052"}, {"ATTND_PORT", "tcp://10.0.0.1:50051"}},
      {{"ATTND_SERVICE_PORT", "50051"}, {"ATTND_SERVICE_HOST", "10.0.0.1"}}};
  for (const Environment& environment : cases) {
    EXPECT_THAT(UnknownVariables(environment),
                ::testing::ElementsAre(::testing::EndsWith("_PORT")))
        << environment.begin()->first;
    Parse({}, environment);
  }
}

TEST_F(ServerConfigTest, SocketModesAreOctal) {
  EXPECT_EQ(Parse({}).socket_mode, 0600U);
  for (const std::string text : {"0660", "660", "0o660"}) {
    EXPECT_EQ(Parse({"--socket-mode=" + text}).socket_mode, 0660U) << text;
    EXPECT_EQ(Parse({}, {{"ATTND_SOCKET_MODE", text}}).socket_mode, 0660U);
    EXPECT_EQ(Parse({ConfigFlag("socket-mode = " + text + "\n")}).socket_mode,
              0660U);
  }
  EXPECT_EQ(Parse({"--socket-mode=777"}).socket_mode, 0777U);
  // YAML turns 0660 into 432. The other texts are no modes, or not modes for a
  // socket.
  for (const std::string text :
       {"432", "8", "0680", "07777", "4755", "0x1b0", "-660", "+660", "u=rw",
        "0", "0060", "0400", "00660", "0o", "660 "}) {
    const auto line = ParseConfig({"--socket-mode=" + text}, {});
    ASSERT_FALSE(line.ok()) << text;
    EXPECT_THAT(line.status().message(),
                ::testing::AllOf(::testing::HasSubstr("--socket-mode: "),
                                 ::testing::HasSubstr("got " + text)));
  }
}

TEST_F(ServerConfigTest, EveryOptionComesFromTheEnvironmentToo) {
  // No option accepts this value, so every variable that is read causes an
  // error.
  for (const std::string& option : OptionNames()) {
    if (option == "listen" || option == "admin-listen" ||
        option == "address-file" || option == "shm-socket" ||
        option == "tls-cert" || option == "tls-key" ||
        option == "tls-client-ca" || option == "token-file") {
      continue;
    }
    std::string name = "ATTND_" + option;
    for (char& c : name) {
      c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
    }
    EXPECT_FALSE(ParseConfig({}, {{name, "/no/such/value"}}).ok()) << name;
  }
}

TEST_F(ServerConfigTest, WrongSettingsAreErrors) {
  const std::vector<std::vector<std::string>> wrong = {
      {"--no-such-flag"},          {"--threads=-1"},
      {"--threads=two"},           {"--max-message-bytes=1"},
      {"--max-in-flight=0"},       {"--log-level=loud"},
      {"--log-format=xml"},        {"--log-format="},
      {"--trace-export=jaeger"},   {"--trace-export="},
      {"--drain-timeout=-1"},      {"--stream-idle-timeout=-1"},
      {"--drain-announce=-1"},     {"--drain-announce=86401"},
      {"--max-connection-age=-1"}, {"positional"},
      {"--config=/no/such/file"},  {"--max-message-bytes=9999999999"},
      {"--shm-allow-uids=root"},   {"--shm-allow-uids=-1"},
      {"--shm-quota-bytes=-1"}};
  for (const auto& args : wrong) {
    EXPECT_FALSE(ParseConfig(args, {}).ok()) << args.front();
  }
}

TEST_F(ServerConfigTest, AWrongWordIsNamedWithThoseThatAreExpected) {
  const auto error = [](const std::string& flag) {
    const auto line = ParseConfig({flag}, {});
    return std::string(line.status().message());
  };
  EXPECT_THAT(error("--log-level=loud"),
              ::testing::HasSubstr("--log-level: expected debug, info, "
                                   "warning or error, got loud"));
  EXPECT_THAT(
      error("--log-format="),
      ::testing::HasSubstr("--log-format: expected text or json, got nothing"));
  EXPECT_THAT(error("--trace-export=jaeger"),
              ::testing::HasSubstr(
                  "--trace-export: expected none or otlp, got jaeger"));
}

TEST_F(ServerConfigTest, AnOptionWithoutTheOneThatItIsForIsAnError) {
  const auto uids = ParseConfig({"--shm-allow-uids=1"}, {});
  ASSERT_FALSE(uids.ok());
  EXPECT_THAT(uids.status().message(),
              ::testing::HasSubstr("--shm-allow-uids: expected --shm-socket "));
  EXPECT_TRUE(ParseConfig({"--shm-allow-uids=1", "--shm-socket=/x"}, {}).ok());

  const std::vector<std::string> tls = {"--tls-cert=c", "--tls-key=k"};
  const auto with_listen = [&tls](const std::string& listen) {
    std::vector<std::string> args = tls;
    args.push_back("--listen=" + listen);
    return ParseConfig(args, {});
  };
  EXPECT_TRUE(ParseConfig(tls, {}).ok());
  EXPECT_TRUE(with_listen("unix:/x,127.0.0.1:1").ok());
  const auto only_unix = with_listen("unix:/x,unix:/y");
  ASSERT_FALSE(only_unix.ok());
  EXPECT_THAT(only_unix.status().message(),
              ::testing::HasSubstr(
                  "--tls-cert: expected a TCP address in --listen as well, "
                  "because unix sockets have no TLS, got unix:/x,unix:/y"));
}

// Comparisons with NaN are false, and clocks do not count times far below a
// millisecond.
TEST_F(ServerConfigTest, TimesAreNumbersThatAClockKnows) {
  for (const std::string option :
       {"--drain-announce", "--drain-timeout", "--stream-idle-timeout",
        "--max-connection-age", "--max-benchmark-seconds"}) {
    for (const char* time : {"nan", "-nan", "inf", "-inf", "1e-9", "0.0009",
                             "1e300", "1s", "", "-0.001"}) {
      const auto line = ParseConfig({absl::StrCat(option, "=", time)}, {});
      ASSERT_FALSE(line.ok()) << option << "=" << time;
      EXPECT_NE(line.status().message().find(option), std::string::npos)
          << line.status();
    }
    for (const char* time : {"0", "0.001", "1.5", "3600"}) {
      EXPECT_TRUE(ParseConfig({absl::StrCat(option, "=", time)}, {}).ok())
          << option << "=" << time;
    }
  }
}

TEST_F(ServerConfigTest, NumbersAreTakenAsTheyAreWrittenOrNotAtAll) {
  const std::string largest = "9223372036854775807";
  for (const std::string option :
       {"memory-budget-bytes", "max-in-flight", "shm-quota-bytes"}) {
    EXPECT_TRUE(
        ParseConfig({absl::StrCat("--", option, "=", largest)}, {}).ok())
        << option;
  }
  for (const std::string option :
       {"memory-budget-bytes", "max-in-flight", "shm-quota-bytes", "threads",
        "max-message-bytes", "max-benchmark-vectors", "shm-allow-uids"}) {
    std::string variable = absl::StrCat("ATTND_", option);
    for (char& c : variable) {
      c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
    }
    for (const std::string number :
         {"9223372036854775808", "99999999999999999999",
          "-99999999999999999999", "4294967296000000000000", "0x10", "010",
          "1e3", "1.5", "1_000", "+1", " 1", "1 ", "1K"}) {
      const std::string setting = absl::StrCat(option, "=", number);
      for (const auto& line :
           {ParseConfig({absl::StrCat("--", setting)}, {}),
            ParseConfig({}, {{variable, number}}),
            ParseConfig(
                {ConfigFlag(absl::StrCat(option, " = \"", number, "\"\n"))},
                {})}) {
        ASSERT_FALSE(line.ok()) << setting;
        EXPECT_NE(line.status().message().find(absl::StrCat("--", option)),
                  std::string::npos)
            << line.status();
        EXPECT_NE(line.status().message().find(absl::StrCat("got ", number)),
                  std::string::npos)
            << line.status();
      }
    }
  }
}

TEST_F(ServerConfigTest, UnknownKeysInTheFileAreErrors) {
  const auto line = ParseConfig({ConfigFlag("treads = 3\n")}, {});
  ASSERT_FALSE(line.ok());
  EXPECT_NE(line.status().message().find("treads"), std::string::npos);
  EXPECT_FALSE(ParseConfig({ConfigFlag("[x]\nthreads = 3\n")}, {}).ok());
}

TEST_F(ServerConfigTest, AnotherFileIsNotShown) {
  const std::string digits(64, 'a');
  for (const std::string& text : std::vector<std::string>{
           "-----BEGIN PRIVATE KEY-----\nMIGH/x+Q\nabc\n",
           "\xef\xbb\xbfthreads = 1\n", "alice " + digits + " user\n",
           digits + "\n", std::string("\xff\xfe\0abc\n", 7)}) {
    const auto line = ParseConfig({ConfigFlag(text)}, {});
    ASSERT_FALSE(line.ok()) << text;
    const std::string message(line.status().message());
    EXPECT_THAT(message,
                ::testing::HasSubstr(
                    "--config: expected a text file of lines such as"));
    EXPECT_THAT(message, ::testing::Not(::testing::HasSubstr("aaa")));
    EXPECT_THAT(message, ::testing::Not(::testing::HasSubstr("abc")));
  }
}

TEST_F(ServerConfigTest, EveryErrorIsNamed) {
  const auto line = ParseConfig(
      {ConfigFlag("treads = 3\nmax-connections = x\n[x]\nthreads = 3\n"),
       "--threads=two", "--socket-mode=8", "--shm-allow-uids=1,root",
       "--no-flag"},
      {{"ATTND_MAX_IN_FLIGHT", "0"}});
  ASSERT_FALSE(line.ok());
  for (const std::string part :
       {"--config: treads is not an option",
        "--config: x.threads is not an option",
        "--max-connections: expected a whole number", "--threads: expected",
        "--socket-mode: expected", "--shm-allow-uids: expected", "--no-flag",
        "--max-in-flight: expected"}) {
    EXPECT_THAT(line.status().message(), ::testing::HasSubstr(part));
  }
  const std::string message(line.status().message());
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 7) << message;
}

TEST_F(ServerConfigTest, FlagsOnTheCommandLineAskForAReport) {
  using Action = CommandLine::Action;
  EXPECT_EQ(ParseConfig({}, {})->action, Action::kServe);
  EXPECT_EQ(ParseConfig({"--check-config"}, {})->action, Action::kCheckConfig);
  EXPECT_EQ(ParseConfig({"--print-config"}, {})->action, Action::kPrintConfig);
  EXPECT_FALSE(ParseConfig({"--print-config", "--check-config"}, {}).ok());
  EXPECT_FALSE(ParseConfig({ConfigFlag("check-config = true\n")}, {}).ok());
  EXPECT_EQ(ParseConfig({}, {{"ATTND_CHECK_CONFIG", "1"}})->action,
            Action::kServe);
}

TEST_F(ServerConfigTest, AnswersHelpAndVersion) {
  EXPECT_EQ(ParseConfig({"--version"}, {})->answer->rfind("attnd ", 0), 0U);
  const std::string help = *ParseConfig({"--help"}, {})->answer;
  for (const std::string& option : OptionNames()) {
    EXPECT_NE(help.find("--" + option), std::string::npos) << option;
  }
}

TEST_F(ServerConfigTest, TheDocumentNamesEveryOption) {
  std::ifstream file(ATTND_CONFIGURATION_MD);
  std::stringstream text;
  text << file.rdbuf();
  ASSERT_FALSE(OptionNames().empty());
  for (const std::string& option : OptionNames()) {
    EXPECT_NE(text.str().find("`--" + option + "`"), std::string::npos)
        << option;
  }
}

TEST_F(ServerConfigTest, ReadsItsOwnVariablesOnly) {
  const char* const entries[] = {"HOME=/root", "ATTND_THREADS=4", "ATTND_X",
                                 nullptr};
  EXPECT_EQ(EnvironmentOf(entries), (Environment{{"ATTND_THREADS", "4"}}));
}

}  // namespace
}  // namespace attnd::server
