#include "server/process/library_logs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <optional>
#include <sstream>
#include <string>

#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Makes the default logger write to a string.
class LibraryLogsTest : public ::testing::Test {
 protected:
  LibraryLogsTest() {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text_)));
    RedirectLibraryLogs();
    // The server sets this verbosity when it starts.
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  }
  ~LibraryLogsTest() override {
    DropLibraryLogs();
    spdlog::set_default_logger(before_);
  }

  std::string text() const { return text_.str(); }

 private:
  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  std::ostringstream text_;
};

TEST_F(LibraryLogsTest, TakesTheLinesOfBothLibraries) {
  gpr_log("/a/b/hpack_parser.cc", 12, GPR_LOG_SEVERITY_ERROR, "no %s", "tea");
  GOOGLE_LOG(ERROR) << "not UTF-8";
  EXPECT_THAT(text(), HasSubstr("[error] gRPC hpack_parser.cc:12: no tea\n"));
  EXPECT_THAT(text(), HasSubstr("[error] protobuf library_logs_test.cc:"));
  EXPECT_THAT(text(), HasSubstr(": not UTF-8\n"));
}

TEST_F(LibraryLogsTest, AHandshakeThatFailsIsNoErrorOfTheServer) {
  gpr_log("src/core/tsi/ssl_transport_security.cc", 1, GPR_LOG_SEVERITY_ERROR,
          "Handshake failed");
  EXPECT_THAT(text(), HasSubstr("[info] gRPC ssl_transport_security.cc:1: "));
}

TEST_F(LibraryLogsTest, CutsLongLines) {
  const std::string message = std::string(200, 'x') + "yyy";
  gpr_log("a.cc", 1, GPR_LOG_SEVERITY_ERROR, "%s", message.c_str());
  EXPECT_THAT(text(), HasSubstr("xxx...\n"));
  EXPECT_THAT(text(), Not(HasSubstr("y")));
}

TEST_F(LibraryLogsTest, SaysNothingAfterTheEnd) {
  DropLibraryLogs();
  gpr_log("a.cc", 1, GPR_LOG_SEVERITY_ERROR, "no tea");
  GOOGLE_LOG(ERROR) << "not UTF-8";
  EXPECT_EQ(text(), "");
}

// A line before an abort is neither limited nor cut.
TEST_F(LibraryLogsTest, WritesAFailedAssertionInFull) {
  const std::string why(300, 'x');
  for (int i = 0; i < 100; ++i) {
    gpr_log("a.cc", 1, GPR_LOG_SEVERITY_ERROR, "assertion failed: %s",
            why.c_str());
  }
  EXPECT_EQ(text().size() - text().rfind(why), why.size() + 1);
}

TEST(LineLimitTest, CountsWhatItLeavesOut) {
  LineLimit limit(2);
  const auto begin = std::chrono::steady_clock::now();
  const auto at = [&](int ms) {
    return limit.Admit(begin + std::chrono::milliseconds(ms));
  };
  EXPECT_EQ(at(0), 0);
  EXPECT_EQ(at(1), 0);
  EXPECT_EQ(at(2), std::nullopt);
  EXPECT_EQ(at(999), std::nullopt);
  EXPECT_EQ(at(1000), 2);
  EXPECT_EQ(at(1500), 0);
  EXPECT_EQ(at(1500), std::nullopt);
  EXPECT_EQ(at(60'000), 1);
}

}  // namespace
}  // namespace attnd::server
