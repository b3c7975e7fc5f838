#include "server/metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "absl/status/status.h"
#include "base/field_error.h"
#include "server/load/load_meter.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class MetricsTest : public ::testing::Test {
 protected:
  std::string Text() const { return MetricsText(context_); }
  // Returns how many time series the text has.
  static int Series(const std::string& text) {
    std::istringstream lines(text);
    int series = 0;
    for (std::string line; std::getline(lines, line);) {
      if (!line.empty() && line[0] != '#') ++series;
    }
    return series;
  }

  AttentionEngine engine_{{.threads = 2}};
  Admission admission_{1000, 3};
  LoadMeter load_;
  ServiceContext context_{
      .engine = engine_, .admission = admission_, .load = &load_};
};

TEST_F(MetricsTest, HasWhatTheLoadMeterCounted) {
  RunStats stats;
  stats.queue_time = std::chrono::milliseconds(20);
  stats.compute_time = std::chrono::milliseconds(250);
  stats.flops = 700;
  load_.Ended(
      ServiceMethod::kAttention, absl::OkStatus(),
      std::chrono::milliseconds(300), stats,
      {.received = 10, .sent = 20, .shared_read = 30, .shared_written = 40});
  load_.Ended(ServiceMethod::kAttentionStream,
              WithReason(absl::ResourceExhaustedError(""), kTooManyRequests),
              std::chrono::milliseconds(300), stats,
              {.received = 1, .sent = 2, .shared_read = 3});
  const auto reservation = admission_.Admit(40);
  const std::string text = Text();
  for (const char* line : {
           "attnd_calls_total{method=\"Attention\",code=\"OK\"} 1\n",
           ("attnd_calls_total{method=\"AttentionStream\","
            "code=\"RESOURCE_EXHAUSTED\"} 1\n"),
           "attnd_failed_calls_total{reason=\"TOO_MANY_REQUESTS\"} 1\n",
           "attnd_call_seconds_sum{method=\"Attention\"} 0.3",
           "attnd_call_seconds_count{method=\"Attention\"} 1\n",
           "attnd_call_seconds_bucket{method=\"Attention\",le=\"0.2\"} 0\n",
           "attnd_call_seconds_bucket{method=\"Attention\",le=\"0.5\"} 1\n",
           "attnd_call_seconds_count{method=\"AttentionStream\"} 0\n",
           "attnd_queue_seconds_sum 0.02",
           "attnd_queue_seconds_count 1\n",
           // A bound belongs to its bucket.
           "attnd_queue_seconds_bucket{le=\"0.01\"} 0\n",
           "attnd_queue_seconds_bucket{le=\"0.02\"} 1\n",
           "attnd_compute_seconds_sum 0.25\n",
           "attnd_compute_seconds_count 1\n",
           "attnd_floating_point_operations_total 700\n",
           "attnd_received_bytes_total{transport=\"inline\"} 10\n",
           "attnd_sent_bytes_total{transport=\"inline\"} 20\n",
           "attnd_received_bytes_total{transport=\"stream\"} 1\n",
           "attnd_sent_bytes_total{transport=\"stream\"} 2\n",
           "attnd_received_bytes_total{transport=\"shared_memory\"} 30\n",
           "attnd_sent_bytes_total{transport=\"shared_memory\"} 40\n",
           "attnd_reserved_bytes 40\n",
           "attnd_memory_budget_bytes 1000\n",
           "attnd_slots 1\n",
           "attnd_max_slots 3\n",
           "attnd_workers 2\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, Not(HasSubstr("reason=\"INTERNAL\"} 1")));
}

TEST_F(MetricsTest, HasAFewMoreIfAsked) {
  const std::string text = MetricsText(
      context_, {{.name = "a_total",
                  .help = "As.",
                  .is_counter = true,
                  .read = [] { return 3.0; }},
                 {.name = "b", .help = "Bs.", .read = [] { return -1.5; }}});
  EXPECT_THAT(text, HasSubstr("# HELP a_total As.\n# TYPE a_total counter\n"
                              "a_total 3\n"
                              "# HELP b Bs.\n# TYPE b gauge\nb -1.5\n"));
}

TEST_F(MetricsTest, NoMixOfCallsMakesMoreThan300Series) {
  for (size_t method = 0; method < LoadMeter::kMethods; ++method) {
    for (int code = 0; code <= 16; ++code) {
      const absl::Status status(static_cast<absl::StatusCode>(code), "");
      load_.Ended(static_cast<ServiceMethod>(method), status,
                  std::chrono::seconds(1), {});
      for (const char* reason : {"OF_A_CLIENT", "\"}\n{", ""}) {
        load_.Ended(static_cast<ServiceMethod>(method),
                    status.ok() ? status : WithReason(status, reason),
                    std::chrono::seconds(1), {});
      }
    }
  }
  const std::string text = Text();
  EXPECT_LE(Series(text), 300);
  EXPECT_THAT(text, Not(HasSubstr("OF_A_CLIENT")));
  // Of the codes that attnd never uses on purpose, clients get INTERNAL.
  EXPECT_THAT(text, Not(HasSubstr("DATA_LOSS")));
}

// Every constant of reasons.h must be in kServerReasons, except those of the
// client library.
TEST_F(MetricsTest, CountsEveryReasonOfTheServer) {
  std::ifstream file(ATTND_REASONS_H);
  std::stringstream source;
  source << file.rdbuf();
  const std::string text = source.str();
  const std::regex constant("constexpr char k\\w+\\[\\] = \"(\\w+)\"");
  std::set<std::string> reasons;
  for (std::sregex_iterator found(text.begin(), text.end(), constant), end;
       found != end; ++found) {
    reasons.insert((*found)[1]);
  }
  EXPECT_EQ(reasons.erase("BAD_RESPONSE"), 1);
  reasons.insert(std::string(kInt64RangeReason));
  EXPECT_EQ(reasons, std::set<std::string>(std::begin(kServerReasons),
                                           std::end(kServerReasons)));
}

}  // namespace
}  // namespace attnd::server
