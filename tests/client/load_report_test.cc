#include "client/attnctl/load_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_join.h"

namespace attnd::attnctl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

class AttnctlLoadReportTest : public testing::Test {
 protected:
  static constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

  // Makes a sample that is taken `seconds` after the first one.
  static LoadSample Sample(double seconds,
                           std::vector<client::MethodLoad> methods) {
    LoadSample sample;
    sample.time = absl::FromUnixSeconds(1'800'000'000) + absl::Seconds(seconds);
    sample.health = client::Health::kServing;
    sample.info = client::ServerInfo();
    sample.info->version = "9.8.7";
    sample.info->isa = "avx512";
    sample.info->threads = 16;
    sample.info->memory_budget_bytes = int64_t{8} << 30;
    client::ServerLoad& load = sample.info->load;
    load.uptime = absl::Seconds(100'000 + seconds);
    load.in_flight = 12;
    load.max_in_flight = 256;
    load.reserved_bytes = int64_t{1280} << 20;
    load.connections = 7;
    load.max_connections = 1000;
    load.busy_threads = 4;
    load.methods = std::move(methods);
    return sample;
  }

  // Makes a sample without an answer.
  static LoadSample Failure(double seconds, absl::Status error) {
    LoadSample sample = Sample(seconds, {});
    sample.health.reset();
    sample.info = std::move(error);
    return sample;
  }

  // Returns the sum of `calls` equal calls.
  static client::MethodLoad Calls(std::string method, int64_t calls,
                                  int64_t failed, double queue_ms,
                                  double compute_ms, int64_t flops) {
    const auto sum = [&](double ms) {
      return absl::Milliseconds(ms) * static_cast<double>(calls);
    };
    return {.method = std::move(method),
            .finished = calls,
            .failed = failed,
            .total_time = sum(queue_ms + compute_ms + 1),
            .queue_time = sum(queue_ms),
            .compute_time = sum(compute_ms),
            .flops = flops * calls};
  }

  static std::vector<client::MethodLoad> Idle() {
    std::vector<client::MethodLoad> methods;
    for (const char* method :
         {"Attention", "SelfAttention", "CrossAttention", "AttentionStream",
          "AttentionBackward", "Benchmark", "MemoryEstimate",
          "GetServerInfo"}) {
      methods.emplace_back().method = method;
    }
    return methods;
  }

  static std::string Text(const std::vector<std::string>& lines) {
    return absl::StrJoin(lines, "\n") + "\n";
  }
  std::string Screen() const {
    return Text(FitRows(report_.Lines(80), "Footer.", 24, 80));
  }
  // Returns the only line that contains `text`.
  std::string LineWith(const std::string& text, size_t columns = 80) const {
    std::vector<std::string> found;
    for (const std::string& line : report_.Lines(columns)) {
      if (absl::StrContains(line, text)) found.push_back(line);
    }
    return found.size() == 1 ? found[0] : Text(found);
  }
  nlohmann::ordered_json Rates() const { return report_.ToJson().at("rates"); }

  LoadReport report_{"127.0.0.1:50051", absl::UTCTimeZone()};
};

TEST_F(AttnctlLoadReportTest, ShowsTheRatesOfAnIntervalIn80By24) {
  std::vector<client::MethodLoad> before = Idle();
  before[0] = Calls("Attention", 1000, 10, 2, 8, 4'000'000'000);
  before[4] = Calls("AttentionBackward", 3, 0, 0, 50, 1'000'000'000);
  std::vector<client::MethodLoad> now = before;
  // 50 calls in two seconds, of which 5 failed. They were not computed.
  now[0].finished += 50;
  now[0].failed += 5;
  now[0].queue_time += absl::Milliseconds(45 * 120);
  now[0].compute_time += absl::Milliseconds(45 * 38);
  now[0].total_time += absl::Milliseconds(50 * 160);
  now[0].flops += 50 * int64_t{4'000'000'000};
  now[4].finished += 1;
  now[4].compute_time += absl::Milliseconds(60);
  now[4].total_time += absl::Milliseconds(61);
  now[4].flops += 1'000'000'000;
  now[7] = Calls("GetServerInfo", 2, 0, 0, 0, 0);
  report_.Add(Sample(0, before));
  report_.Add(Sample(2, now));
  EXPECT_EQ("\n" + Screen(),
            R"(
attnd 9.8.7 at 127.0.0.1:50051                           2027-01-15 08:00:02 UTC
SERVING, up 1 d 03:46:42, avx512, 16 threads

threads     [#########..........................]                  4 of 16  25 %
slots       [##.................................]                12 of 256   5 %
memory      [######.............................]       1.2 GiB of 8.0 GiB  16 %
connections [#..................................]                7 of 1000   1 %

On average over the last 2.0 s, 2.70 calls waited and 0.89 were computed.

method              calls/s failed/s queue ms compute ms total ms GFLOP/s  calls
all                    26.5     2.50      117       38.5      152     100   1056
Attention              25.0     2.50      120       38.0      160     100   1050
AttentionBackward      0.50        0        0       60.0     61.0    0.50      4
GetServerInfo          1.00        0        -          -     1.00       0      2
SelfAttention             0        0        -          -        -       0      0
CrossAttention            0        0        -          -        -       0      0
AttentionStream           0        0        -          -        -       0      0
Benchmark                 0        0        -          -        -       0      0
MemoryEstimate            0        0        -          -        -       0      0



Footer.
)");
  const auto rates = Rates();
  EXPECT_EQ(rates.at("seconds"), 2);
  EXPECT_EQ(rates.at("since_start"), false);
  EXPECT_EQ(rates.at("restarted"), false);
  EXPECT_EQ(rates.at("methods").size(), 8U);
  EXPECT_EQ(rates.at("methods")[0], nlohmann::ordered_json::parse(R"({
      "method": "Attention", "finished_per_second": 25.0,
      "failed_per_second": 2.5, "mean_queue_time_ms": 120.0,
      "mean_compute_time_ms": 38.0, "mean_total_time_ms": 160.0,
      "mean_calls_waiting": 2.7, "mean_calls_computing": 0.855,
      "gflops": 100.0})"));
  EXPECT_EQ(rates.at("methods")[7].at("mean_queue_time_ms"), nullptr);
  EXPECT_EQ(rates.at("all").at("finished_per_second"), 26.5);
  const auto json = report_.ToJson();
  EXPECT_EQ(json.at("time"), "2027-01-15T08:00:02.000Z");
  EXPECT_EQ(json.at("health"), "SERVING");
  EXPECT_EQ(json.at("load").at("in_flight"), 12);
  EXPECT_EQ(json.at("load").at("uptime_ms"), 100'002'000.0);
  EXPECT_EQ(json.at("load").at("methods")[0].at("finished"), 1050);
  EXPECT_EQ(json.at("load").at("methods")[0].at("queue_time_ms"), 7400.0);
}

TEST_F(AttnctlLoadReportTest, TheFirstSampleHasTheAveragesSinceTheStart) {
  LoadSample first =
      Sample(0, {Calls("Attention", 400, 0, 5, 50, 1'000'000'000)});
  first.info->load.uptime = absl::Seconds(40);
  report_.Add(first);
  EXPECT_EQ(LineWith("On average"),
            "On average since the server started, 0.05 calls waited and 0.50 "
            "were computed.");
  EXPECT_EQ(LineWith("Attention"),
            "Attention              10.0        0     5.00       50.0     56.0 "
            "   10.0    400");
  EXPECT_EQ(Rates().at("seconds"), 40);
  EXPECT_EQ(Rates().at("since_start"), true);
  EXPECT_EQ(Rates().at("restarted"), false);
}

TEST_F(AttnctlLoadReportTest, NoCallsMakeNoMeans) {
  report_.Add(Sample(0, Idle()));
  report_.Add(Sample(2, Idle()));
  EXPECT_EQ(LineWith("Benchmark"),
            "Benchmark                 0        0        -          -        - "
            "      0      0");
  EXPECT_EQ(LineWith("On average"),
            "On average over the last 2.0 s, 0 calls waited and 0 were "
            "computed.");
}

TEST_F(AttnctlLoadReportTest, ARestartedServerHasAveragesSinceItsRestart) {
  const client::MethodLoad before = Calls("Attention", 100, 0, 5, 50, 1000);
  const client::MethodLoad fewer = Calls("Attention", 20, 0, 5, 50, 1000);
  const client::MethodLoad more = Calls("Attention", 200, 0, 5, 50, 1000);
  struct Case {
    const char* what;
    client::MethodLoad now;
    double uptime_s;
    double per_second;
  };
  for (const Case& test :
       {Case{"both fall", fewer, 4, 5},
        Case{"the new server is older than the old one was", fewer, 100'002,
             20 / 100'002.},
        Case{"the new server has had more calls", more, 4, 50},
        Case{"an address that leads to several servers", more, 400'000,
             200 / 400'000.}}) {
    LoadReport report("server", absl::UTCTimeZone());
    report.Add(Sample(0, {before}));
    LoadSample now = Sample(2, {test.now});
    now.info->load.uptime = absl::Seconds(test.uptime_s);
    report.Add(now);
    const auto rates = report.ToJson().at("rates");
    EXPECT_EQ(rates.at("restarted"), true) << test.what;
    EXPECT_EQ(rates.at("since_start"), true) << test.what;
    EXPECT_DOUBLE_EQ(rates.at("all").at("finished_per_second"), test.per_second)
        << test.what;
    EXPECT_THAT(Text(report.Lines(80)),
                HasSubstr("On average since the server restarted, "))
        << test.what;
    // The next interval is an interval again.
    LoadSample next = now;
    next.time += absl::Seconds(2);
    next.info->load.uptime += absl::Seconds(2);
    report.Add(next);
    EXPECT_EQ(report.ToJson().at("rates").at("restarted"), false) << test.what;
  }
  // A new version can have other methods.
  report_.Add(Sample(0, {before}));
  report_.Add(Sample(2, {before, Calls("New", 1, 0, 0, 0, 0)}));
  EXPECT_EQ(Rates().at("restarted"), true);
}

// A fast server can exceed int64 within weeks.
TEST_F(AttnctlLoadReportTest, OperationsThatExceedTheirTotalAreNoRestart) {
  client::MethodLoad attention = Calls("Attention", 1, 0, 5, 50, kMax);
  const client::MethodLoad other = Calls("SelfAttention", 1, 0, 5, 50, 7);
  report_.Add(Sample(0, {attention, other}));
  attention.flops = 5;
  report_.Add(Sample(2, {attention, other}));
  EXPECT_EQ(Rates().at("restarted"), false);
  EXPECT_EQ(Rates().at("methods")[0].at("gflops"), nullptr);
  EXPECT_EQ(Rates().at("methods")[1].at("gflops"), 0);
  EXPECT_EQ(Rates().at("all").at("gflops"), nullptr);
  report_.Add(Sample(4, {attention, other}));
  EXPECT_EQ(Rates().at("all").at("gflops"), 0);
}

// The server's own clock decides how long an interval was.
TEST_F(AttnctlLoadReportTest, ASlowAnswerDoesNotChangeRates) {
  report_.Add(Sample(0, {Calls("Attention", 100, 0, 5, 50, 1000)}));
  LoadSample late = Sample(2, {Calls("Attention", 120, 0, 5, 50, 1000)});
  late.time += absl::Seconds(30);
  report_.Add(late);
  EXPECT_EQ(Rates().at("seconds"), 2);
  EXPECT_EQ(Rates().at("all").at("finished_per_second"), 10);
}

TEST_F(AttnctlLoadReportTest, HugeNumbersFitTheirColumns) {
  client::MethodLoad huge{.method = "Attention",
                          .finished = kMax,
                          .failed = kMax / 2,
                          .total_time = absl::Seconds(kMax),
                          .queue_time = absl::Seconds(kMax),
                          .compute_time = absl::InfiniteDuration(),
                          .flops = kMax};
  LoadSample sample = Sample(0, {huge, huge});
  client::ServerLoad& load = sample.info->load;
  load.busy_threads = load.in_flight = load.reserved_bytes = kMax;
  load.connections = -kMax - 1;
  load.max_connections = 0;
  load.uptime = absl::Seconds(1e-9);
  report_.Add(sample);
  EXPECT_EQ(LineWith("all "),
            "all                   >999E    >999E     2000      >999E     1000 "
            "      -     9E");
  EXPECT_EQ(LineWith("slots"),
            "slots       [###################################]                "
            "9E of 256 999 %");
  EXPECT_EQ(LineWith("connections"),
            "connections [...................................]                "
            "   0 of 0     -");
  // A rate cannot be told from a total that has stopped to grow.
  EXPECT_EQ(Rates().at("all").at("gflops"), nullptr);
  for (size_t columns = 0; columns < 200; ++columns) {
    for (const std::string& line : report_.Lines(columns)) {
      ASSERT_LE(line.size(), columns) << line;
    }
  }
  EXPECT_NE(report_.ToJson().dump(), "");
}

TEST_F(AttnctlLoadReportTest, LongAndHostileTextsStayInTheirPlaces) {
  const std::string hostile = "bad\x1b[2J\xff\nname\u4e2d\u9fa5";
  LoadReport report(std::string(200, 's') + hostile, absl::UTCTimeZone());
  LoadSample sample =
      Sample(0, {Calls(hostile + std::string(100, 'x'), 1, 0, 0, 0, 0)});
  sample.info->version = hostile;
  sample.info->isa = std::string(300, 'i');
  report.Add(sample);
  for (const size_t columns : {0U, 1U, 5U, 20U, 40U, 79U, 80U, 81U, 300U}) {
    for (const std::string& line : report.Lines(columns)) {
      ASSERT_LE(line.size(), columns) << line;
      for (const char c : line) ASSERT_TRUE(c >= 32 && c < 127) << line;
    }
  }
  const std::string text = Text(report.Lines(80));
  EXPECT_THAT(text, StartsWith("attnd bad\\x1b[2J\\xff\\x0aname?? at sssss"));
  EXPECT_THAT(text, HasSubstr("sss... 2027-01-15 08:00:00 UTC\n"));
  EXPECT_THAT(text, HasSubstr("\nbad\\x1b[2J\\xff\\..."));
  EXPECT_EQ(
      nlohmann::json::parse(
          report.ToJson().dump(-1, ' ', true, Json::error_handler_t::replace))
          .at("version"),
      "bad\x1b[2J\ufffd\nname\u4e2d\u9fa5");
}

TEST_F(AttnctlLoadReportTest, NarrowTerminalsLoseTheLastColumns) {
  report_.Add(Sample(0, Idle()));
  EXPECT_EQ(LineWith("calls/s", 40), "method              calls/s failed/s");
  EXPECT_EQ(LineWith("GFLOP", 75),
            "method              calls/s failed/s queue ms compute ms total ms "
            "GFLOP/s");
  // Wide ones have longer bars and more of long names.
  EXPECT_THAT(LineWith("slots", 120), SizeIs(120));
  report_.Add(Sample(2, {Calls(std::string(30, 'm'), 1, 0, 0, 0, 0)}));
  EXPECT_THAT(LineWith("mmm", 100), StartsWith(std::string(30, 'm') + " "));
  EXPECT_THAT(LineWith("mmm", 80), StartsWith(std::string(15, 'm') + "... "));
}

TEST_F(AttnctlLoadReportTest, SaysSinceWhenTheServerIsNotReachable) {
  report_.Add(Failure(0, absl::UnavailableError("nobody listens")));
  report_.Add(Failure(4, absl::DeadlineExceededError("silence")));
  EXPECT_THAT(report_.Lines(80),
              ElementsAre("attnd at 127.0.0.1:50051",
                          "NOT REACHABLE since 08:00:00: DEADLINE_EXCEEDED: "
                          "silence"));
  EXPECT_EQ(report_.ToJson(), nlohmann::ordered_json::parse(R"({
      "server": "127.0.0.1:50051", "health": null,
      "no_answer_since": "2027-01-15T08:00:00.000Z",
      "error": {"code": "DEADLINE_EXCEEDED", "message": "silence"}})"));
  report_.Add(Sample(6, Idle()));
  EXPECT_THAT(Text(report_.Lines(80)), Not(HasSubstr("REACHABLE")));
  // What was known before the outage stays on the screen, with its time.
  report_.Add(Failure(8, absl::UnavailableError(std::string(100, 'e'))));
  EXPECT_EQ(report_.Lines(80)[1],
            "NOT REACHABLE since 08:00:08: UNAVAILABLE: " +
                std::string(34, 'e') + "...");
  EXPECT_EQ(report_.Lines(80)[2], "The numbers below are those of 08:00:06.");
  EXPECT_THAT(LineWith("slots"), HasSubstr("12 of 256"));
  EXPECT_FALSE(report_.ToJson().contains("load"));
  // After an outage of the network alone, the rates cover all of it.
  report_.Add(Sample(16, Idle()));
  EXPECT_EQ(Rates().at("seconds"), 10);
  EXPECT_EQ(Rates().at("restarted"), false);
}

TEST_F(AttnctlLoadReportTest, SaysWhenTheServerIsNotServing) {
  LoadSample sample = Sample(0, Idle());
  sample.health = client::Health::kNotServing;
  report_.Add(sample);
  EXPECT_EQ(report_.Lines(80)[1],
            "NOT_SERVING, up 1 d 03:46:40, avx512, 16 threads");
  EXPECT_EQ(report_.ToJson().at("health"), "NOT_SERVING");
  // A server that drains answers the health check alone.
  LoadSample drains = Failure(2, absl::UnavailableError("it drains"));
  drains.health = client::Health::kNotServing;
  report_.Add(drains);
  EXPECT_EQ(report_.Lines(80)[1],
            "NOT_SERVING, no answer since 08:00:02: UNAVAILABLE: it drains");
  EXPECT_EQ(report_.ToJson().at("health"), "NOT_SERVING");
  sample.health.reset();
  report_.Add(sample);
  EXPECT_THAT(report_.Lines(80)[1], StartsWith("UNKNOWN, up "));
  EXPECT_EQ(report_.ToJson().at("health"), nullptr);
}

TEST_F(AttnctlLoadReportTest, SaysWhenTheServerReportsNoLoad) {
  LoadSample sample = Sample(0, {});
  sample.info->load = {};
  report_.Add(sample);
  report_.Add(sample);
  EXPECT_EQ(report_.Lines(80).back(), "This server does not report its load.");
  EXPECT_EQ(report_.ToJson().at("rates"), nullptr);
}

TEST(FitRowsTest, PutsTheFooterIntoTheLastRow) {
  const std::vector<std::string> lines = {"one", "two", "three"};
  EXPECT_THAT(FitRows(lines, "end", 5, 80),
              ElementsAre("one", "two", "three", "", "end"));
  EXPECT_THAT(FitRows(lines, "end", 4, 80),
              ElementsAre("one", "two", "three", "end"));
  EXPECT_THAT(FitRows(lines, "end.", 3, 80),
              ElementsAre("one", "two", "end. Lines that do not fit: 1."));
  EXPECT_THAT(FitRows(lines, "end.", 1, 80),
              ElementsAre("end. Lines that do not fit: 3."));
  EXPECT_THAT(FitRows(lines, "end.", 1, 7), ElementsAre("end...."));
  EXPECT_THAT(FitRows(lines, "end", 0, 80), ElementsAre());
}

}  // namespace
}  // namespace attnd::attnctl
