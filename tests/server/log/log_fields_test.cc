#include "server/log/log_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <sstream>
#include <string>

#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Makes the default logger write the text of each line to a string.
class LogFieldsTest : public ::testing::Test {
 protected:
  LogFieldsTest() {
    auto logger = std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text_));
    logger->set_pattern("[%n] [%l] %v");
    spdlog::set_default_logger(std::move(logger));
  }
  ~LogFieldsTest() override {
    SetLogFormat(LogFormat::kText);
    spdlog::set_default_logger(before_);
  }

  std::string text() const { return text_.str(); }

 private:
  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  std::ostringstream text_;
};

TEST_F(LogFieldsTest, TextHasNamesAndValues) {
  LogFields(spdlog::level::info, "request",
            {{"method", "Attention"}, {"peer", "ipv4:[::1]:7"}, {"us", 12}});
  EXPECT_EQ(text(),
            "[test] [info] request method=Attention peer=ipv4:[::1]:7 us=12\n");
}

TEST_F(LogFieldsTest, TextQuotesWhatCouldBeMistakenForAField) {
  LogFields(spdlog::level::info, "request",
            {{"a", ""},
             {"b", "x code=OK"},
             {"c", "\"\\"},
             {"d", "x\ny\xff"},
             {"e", "\u00fc"}});
  EXPECT_THAT(text(), HasSubstr(R"(a="" b="x code=OK" c="\"\\" )"
                                R"(d="x\\x0ay\\xff" e="ü")"));
}

TEST_F(LogFieldsTest, JsonHasMembers) {
  SetLogFormat(LogFormat::kJson);
  LogFields(spdlog::level::info, "request",
            {{"a", "x\ny\xff\""}, {"b", -12}, {"c", ""}});
  EXPECT_THAT(text(), HasSubstr(R"("message":"request",)"
                                R"("a":"x\\x0ay\\xff\"","b":-12,"c":"")"));
}

TEST_F(LogFieldsTest, CutsLongValues) {
  LogFields(spdlog::level::info, "request",
            {{"a", std::string(256, 'x') + "yyy"}});
  EXPECT_THAT(text(), HasSubstr("xxx...\""));
  EXPECT_THAT(text(), Not(HasSubstr("y")));
}

TEST_F(LogFieldsTest, TheLevelOfTheLoggerCounts) {
  LogFields(spdlog::level::debug, "request", {{"a", 1}});
  EXPECT_EQ(text(), "");
}

}  // namespace
}  // namespace attnd::server
