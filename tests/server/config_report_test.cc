#include "server/config_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/server_config.h"

namespace attnd::server {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

class ConfigReportTest : public ::testing::Test {
 protected:
  // A folder of the running test, which is empty at first.
  ConfigReportTest() : folder_(::testing::TempDir()) {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ /= absl::StrCat("attnd_report_", getpid(), "_", test->name());
    std::filesystem::create_directory(folder_);
  }
  ~ConfigReportTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ / name; }

  std::string WriteFile(const std::string& text) const {
    std::ofstream(Path("attnd.toml")) << text;
    return Path("attnd.toml");
  }

  // What --print-config prints, or the error.
  static std::string Print(const std::vector<std::string>& args,
                           const Environment& environment = {}) {
    const auto line = ParseConfig(args, environment);
    EXPECT_TRUE(line.ok()) << line.status();
    if (!line.ok()) return "";
    const auto text = PrintConfig(*line);
    return text.ok() ? *text : text.status().ToString();
  }

  // What it prints for the file that has `text`.
  std::string PrintAgain(const std::string& text) const {
    return Print({"--config=" + WriteFile(text)});
  }

  static std::string WithoutComments(const std::string& text) {
    std::vector<std::string> lines = absl::StrSplit(text, '\n');
    lines.erase(std::remove_if(lines.begin(), lines.end(),
                               [](const std::string& line) {
                                 return line.empty() || line.front() == '#';
                               }),
                lines.end());
    return absl::StrJoin(lines, "\n");
  }

  // The default configuration on free ports, so that its ports do not matter.
  static ServerConfig Free() {
    ServerConfig config;
    config.listen = {"127.0.0.1:0"};
    config.admin_listen = "127.0.0.1:0";
    return config;
  }

  std::filesystem::path folder_;
};

TEST_F(ConfigReportTest, PrintsEveryOptionAndWhereItComesFrom) {
  const std::string file = WriteFile("drain-timeout = 7\nthreads = 9\n");
  const std::string text = Print(
      {"--config=" + file, "--max-in-flight=3", "--listen=[::1]:5,unix:/x"},
      {{"ATTND_THREADS", "2"}, {"ATTND_ADMIN_LISTEN", ""}});
  EXPECT_THAT(text, HasSubstr("\n# flag --max-in-flight\nmax-in-flight = 3\n"));
  EXPECT_THAT(text, HasSubstr("\n# flag --listen\n"
                              "listen = [\"[::1]:5\", \"unix:/x\"]\n"));
  EXPECT_THAT(text, HasSubstr("\n# variable ATTND_THREADS\nthreads = 2\n"));
  EXPECT_THAT(text, HasSubstr("\n# variable ATTND_ADMIN_LISTEN\n"
                              "admin-listen = \"\"\n"));
  EXPECT_THAT(text, HasSubstr(absl::StrCat("\n# file ", file,
                                           "\ndrain-timeout = 7\n")));
  EXPECT_THAT(text, HasSubstr("\n# default\nlog-level = \"info\"\n"));
  for (const std::string& option : OptionNames()) {
    if (option == "config") continue;
    EXPECT_THAT(text, HasSubstr(absl::StrCat(option, " = "))) << option;
  }
}

TEST_F(ConfigReportTest, SaysWhatADefaultMeansOnThisMachine) {
  const std::string text = Print({"--memory-budget-bytes=1073741824"});
  for (const char* option : {"threads", "max-connections"}) {
    const size_t at = text.find(absl::StrCat("\n", option, " = 0\n"));
    ASSERT_NE(at, std::string::npos) << option;
    const std::string above = text.substr(0, at);
    EXPECT_THAT(above.substr(above.rfind('\n')),
                StartsWith("\n# default; on this machine "))
        << option;
  }
  EXPECT_THAT(text, HasSubstr("# default; on this machine 1073741824\n"
                              "shm-quota-bytes = 0\n"));
  EXPECT_THAT(text, HasSubstr("# flag --memory-budget-bytes\n"));
}

// With all options, a line that --config reads in another way is noticed.
TEST_F(ConfigReportTest, TheFilePrintsTheSameAgain) {
  const std::vector<std::vector<std::string>> cases = {
      {},
      {"--listen=127.0.0.1:0,unix:/tmp/x", "--socket-mode=0o660",
       "--admin-listen=", "--shm-allow-uids=0,4294967295",
       "--shm-socket=/tmp/s", "--shm-quota-bytes=9223372036854775807",
       "--threads=7", "--max-message-bytes=268435456", "--max-in-flight=1",
       "--memory-budget-bytes=1073741824", "--max-connections=20",
       "--drain-timeout=1.5", "--drain-announce=0.25",
       "--stream-idle-timeout=0.001", "--max-connection-age=1e2",
       "--max-benchmark-vectors=9", "--max-benchmark-seconds=2.50",
       "--log-level=error", "--address-file=/tmp/a b,c"}};
  for (const auto& args : cases) {
    const std::string first = Print(args);
    const std::string second = PrintAgain(first);
    EXPECT_EQ(WithoutComments(second), WithoutComments(first));
    EXPECT_EQ(PrintAgain(second), second);
    EXPECT_THAT(first, Not(HasSubstr("INVALID_ARGUMENT")));
  }
}

TEST_F(ConfigReportTest, UnusualTextsSurviveOrAreRefused) {
  for (const std::string value :
       {"/tmp/it's", "/tmp/say \"x\"", "/tmp/a\\b", "/tmp/[x]", "[x]", "{x}",
        "'q'", "\"q\"", "007", "0x10", "1.50", "inf", "true", " blank ", "a;b",
        "a=b", "%"}) {
    const std::string flag = "--address-file=" + value;
    const std::string again = PrintAgain(Print({flag}));
    EXPECT_EQ(WithoutComments(again), WithoutComments(Print({flag}))) << value;
    const auto line = ParseConfig({"--config=" + Path("attnd.toml")}, {});
    ASSERT_TRUE(line.ok()) << value;
    EXPECT_EQ(line->config.address_file, value);
  }
  for (const std::string value : {"a#b", "a\nb", "a\x7f", "'\""}) {
    EXPECT_THAT(
        Print({"--address-file=" + value}),
        AllOf(HasSubstr("INVALID_ARGUMENT"), HasSubstr("--address-file: ")));
  }
}

TEST_F(ConfigReportTest, AnOrdinaryConfigurationIsRight) {
  const ConfigFindings found = CheckConfig(Free());
  EXPECT_THAT(found.errors, IsEmpty());
  EXPECT_THAT(found.warnings, IsEmpty());
}

TEST_F(ConfigReportTest, NamesEveryError) {
  ServerConfig config = Free();
  config.listen = {"no-port", "192.0.2.1:1", "127.0.0.1:7", "127.0.0.1:7",
                   "unix:" + Path("none/socket")};
  config.admin_listen = "unix:/x";
  config.shm_socket = Path(std::string(200, 'x'));
  config.address_file = folder_;
  config.max_connections = int64_t{1} << 40;
  EXPECT_THAT(
      CheckConfig(config).errors,
      ElementsAre(
          AllOf(StartsWith("--listen: "), HasSubstr("no-port")),
          AllOf(StartsWith("--listen: "), HasSubstr("not an address of this")),
          "--listen: 127.0.0.1:7 is also an address of --listen: choose "
          "another one",
          AllOf(StartsWith("--listen: cannot make files in the folder"),
                HasSubstr("none/")),
          StartsWith("--admin-listen: expected host:port"),
          StartsWith("--shm-socket: expected a path of at most 107 bytes"),
          AllOf(StartsWith("--address-file: "), HasSubstr("is a folder")),
          StartsWith("--max-connections: expected at most ")));
}

TEST_F(ConfigReportTest, PathsOfOtherFilesAreErrors) {
  std::ofstream(Path("text")) << "text";
  std::ofstream(Path("locked.lock")) << "text";
  mkfifo(Path("fifo").c_str(), 0600);
  for (const std::string name : {"text", "locked", "fifo"}) {
    ServerConfig config = Free();
    config.listen.push_back("unix:" + Path(name));
    EXPECT_THAT(CheckConfig(config).errors,
                ElementsAre(AllOf(StartsWith("--listen: "), HasSubstr(name))));
    config = Free();
    config.shm_socket = Path(name);
    EXPECT_THAT(
        CheckConfig(config).errors,
        ElementsAre(AllOf(StartsWith("--shm-socket: "), HasSubstr(name))));
  }
}

TEST_F(ConfigReportTest, ThePathOfOneSocketServesOneOption) {
  ServerConfig config = Free();
  config.listen.push_back("unix:" + Path("x"));
  config.shm_socket = Path("x");
  EXPECT_THAT(CheckConfig(config).errors,
              ElementsAre(AllOf(StartsWith("--shm-socket: "),
                                HasSubstr("is also an address of --listen"))));
}

TEST_F(ConfigReportTest, AWildcardIncludesAllAddressesOfItsPort) {
  ServerConfig config = Free();
  config.listen = {"0.0.0.0:7", "127.0.0.1:8"};
  config.admin_listen = "127.0.0.1:9";
  EXPECT_THAT(CheckConfig(config).errors, IsEmpty());
  config.admin_listen = "127.0.0.1:7";
  EXPECT_THAT(CheckConfig(config).errors,
              ElementsAre("--admin-listen: 127.0.0.1:7 has the same port as "
                          "0.0.0.0:7 of --listen: choose another one"));
  config.admin_listen = "[::]:8";
  EXPECT_THAT(CheckConfig(config).errors,
              ElementsAre("--admin-listen: [::]:8 has the same port as "
                          "127.0.0.1:8 of --listen: choose another one"));
}

TEST_F(ConfigReportTest, WarnsOfLimitsThatDoNotFitTheMachine) {
  ServerConfig config = Free();
  config.memory_budget_bytes = int64_t{1} << 50;
  config.threads = 4096;
  EXPECT_THAT(CheckConfig(config).warnings,
              ElementsAre(StartsWith("--memory-budget-bytes: "),
                          StartsWith("--threads: 4096 threads share ")));
  config = Free();
  config.memory_budget_bytes = config.max_message_bytes - 1;
  const ConfigFindings found = CheckConfig(config);
  EXPECT_THAT(found.errors, IsEmpty());
  EXPECT_THAT(found.warnings, ElementsAre(StartsWith("--max-message-bytes: ")));
}

}  // namespace
}  // namespace attnd::server
