#include "server/process/log_sink.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/unique_fd.h"
#include "server/log/log_fields.h"
#include "spdlog/logger.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

// Writes the log into a pipe.
class LogSinkTest : public ::testing::Test {
 protected:
  LogSinkTest() {
    std::signal(SIGPIPE, SIG_IGN);
    std::array<int, 2> ends{};
    EXPECT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
    reader_ = UniqueFd(ends[0]);
    // It stays open, because a thread that was left behind may still write to
    // it.
    writer_ = ends[1];
    LogTo(writer_);
  }

  void LogTo(int fd) {
    sink_ = std::make_shared<LogSink>(fd);
    log_ = std::make_unique<spdlog::logger>("test", sink_);
  }

  // Reads everything up to `last`, or until all writers have closed the pipe.
  std::string ReadUntil(const std::string& last) {
    std::string all;
    std::vector<char> some(1 << 16);
    while (last.empty() || all.find(last) == std::string::npos) {
      const ssize_t size = read(reader_.get(), some.data(), some.size());
      if (size <= 0) break;
      all.append(some.data(), static_cast<size_t>(size));
    }
    return all;
  }
  std::string ReadAll() { return ReadUntil(""); }

  // Returns what the log contains if only `text` is logged.
  std::string Written(const std::string& text) {
    log_->info("{}", text);
    sink_->Close();
    close(writer_);
    return ReadAll();
  }

  UniqueFd reader_;
  int writer_ = -1;
  std::shared_ptr<LogSink> sink_;
  std::unique_ptr<spdlog::logger> log_;
};

TEST_F(LogSinkTest, WritesALine) {
  EXPECT_THAT(Written("attnd serves on \u00fc:1"),
              MatchesRegex("\\[[-0-9]+ [.:0-9]+\\] \\[test\\] \\[info\\] "
                           "attnd serves on \u00fc:1\n"));
}

TEST_F(LogSinkTest, EscapesEveryText) {
  EXPECT_THAT(Written("a\n[2026-01-01] [attnd] [info] b\x1b[2J\xff"),
              EndsWith("a\\x0a[2026-01-01] [attnd] [info] b\\x1b[2J\\xff\n"));
}

TEST_F(LogSinkTest, CutsLongTexts) {
  const std::string line = Written(std::string(5000, 'x') + "end");
  EXPECT_THAT(line, EndsWith("xxx...\n"));
  EXPECT_LT(line.size(), 1200U);
}

// As above, but each line is an object of JSON.
class JsonLogSinkTest : public LogSinkTest {
 protected:
  JsonLogSinkTest() {
    SetLogFormat(LogFormat::kJson);
    LogTo(writer_);
  }
  ~JsonLogSinkTest() override { SetLogFormat(LogFormat::kText); }
};

TEST_F(JsonLogSinkTest, WritesAnObject) {
  const std::string line = Written("\"a\\\n\u00fc\xff\" 100%v");
  EXPECT_THAT(line,
              MatchesRegex("\\{\"time\":\"[-0-9]+T[:0-9]+\\.[0-9]+Z\",.*\n"));
  EXPECT_THAT(line, EndsWith(R"(,"level":"info","message":)"
                             R"("\"a\\\\x0aü\\xff\" 100%v"})"
                             "\n"));
}

TEST_F(JsonLogSinkTest, WritesFieldsAsMembers) {
  const std::shared_ptr<spdlog::logger> before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink_));
  LogFields(spdlog::level::warn, "request", {{"code", "OK"}, {"total_us", 7}});
  spdlog::set_default_logger(before);
  sink_->Close();
  close(writer_);
  EXPECT_THAT(ReadAll(),
              HasSubstr(R"("level":"warning","message":"request","code":"OK",)"
                        R"("total_us":7})"
                        "\n"));
}

TEST_F(JsonLogSinkTest, CountsWhatIsMissingInAnObject) {
  for (int i = 0; i < 100'000; ++i) log_->info("line {} of many lines", i);
  std::string text;
  while (text.find(" lines were dropped") == std::string::npos) {
    text += ReadUntil("\n");
  }
  sink_->Close();
  close(writer_);
  EXPECT_THAT(text + ReadAll(),
              ContainsRegex("\"level\":\"warning\",\"message\":\"[0-9]+ lines "
                            "were dropped because stderr did not accept "
                            "them\"\\}\n"));
}

// Returns the number of lines and of those that the log says are missing.
std::pair<int, int> CountLines(const std::string& text) {
  std::pair<int, int> counts;
  const std::vector<std::string> all = absl::StrSplit(text, '\n');
  for (const std::string& line : all) {
    const size_t end = line.find(" lines were dropped");
    if (end != std::string::npos) {
      counts.second += std::stoi(line.substr(line.rfind(' ', end - 1) + 1));
    } else if (!line.empty()) {
      ++counts.first;
    }
  }
  return counts;
}

int Sum(const std::pair<int, int>& counts) {
  return counts.first + counts.second;
}

TEST_F(LogSinkTest, NobodyWaitsForAReaderAndWhatIsMissingIsCounted) {
  constexpr int kLines = 100'000;
  const int64_t dropped_before = DroppedLogLines();
  for (int i = 0; i < kLines; ++i) log_->info("line {} of many lines", i);
  // Every line is either written or counted as missing. The sink can write them
  // in several parts.
  std::string text;
  do {
    text += ReadUntil("\n");
  } while (Sum(CountLines(text)) < kLines);
  // Now the sink can write new lines again.
  log_->info("the last");
  sink_->Close();
  close(writer_);
  text += ReadAll();
  EXPECT_GT(CountLines(text).second, 0);
  EXPECT_EQ(DroppedLogLines() - dropped_before, CountLines(text).second);
  EXPECT_EQ(Sum(CountLines(text)), kLines + 1);
  EXPECT_THAT(text, EndsWith("the last\n"));
  EXPECT_THAT(text, HasSubstr("line 0 of"));
}

TEST_F(LogSinkTest, ClosesThoughNobodyReads) {
  for (int i = 0; i < 10'000; ++i) log_->info("line {} of many lines", i);
  sink_->Close();
  log_->info("after the end");
  // This lets the stuck thread continue.
  EXPECT_EQ(fcntl(writer_, F_SETFL, O_NONBLOCK), 0);
  std::vector<char> some(1 << 16);
  EXPECT_GT(read(reader_.get(), some.data(), some.size()), 0);
  reader_ = UniqueFd();
}

TEST_F(LogSinkTest, AReaderThatIsGoneIsNoReasonToStop) {
  reader_ = UniqueFd();
  for (int i = 0; i < 10'000; ++i) log_->info("line {} of many lines", i);
  sink_->Close();
}

TEST_F(LogSinkTest, AFullDiskIsNoReasonToStop) {
  const UniqueFd full(open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(full.valid());
  LogTo(full.get());
  for (int i = 0; i < 10'000; ++i) log_->info("line {} of many lines", i);
  sink_->Close();
}

TEST_F(LogSinkTest, WaitsWhereSomebodyMadeTheDescriptorNonBlocking) {
  ASSERT_EQ(fcntl(writer_, F_SETFL, O_NONBLOCK), 0);
  constexpr int kLines = 5'000;
  for (int i = 0; i < kLines; ++i) log_->info("line {} of many lines", i);
  std::string text = ReadUntil(absl::StrCat("line ", kLines - 1, " of"));
  sink_->Close();
  close(writer_);
  text += ReadAll();
  EXPECT_EQ(CountLines(text), std::pair(kLines, 0));
  EXPECT_THAT(text, Not(HasSubstr("dropped")));
}

}  // namespace
}  // namespace attnd::server
