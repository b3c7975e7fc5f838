// Tests attnctl bench --sweep, estimate --sweep and estimate --max.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/attnctl/attnctl.h"
#include "client/attnctl/exit_codes.h"
#include "tests/client/fake_server.h"

namespace attnd::attnctl {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// A server whose naive attention fits up to 2 vectors, and which refuses more
// than 4.
class SmallServerHandler : public client::FakeHandler {
 public:
  client::WireReply OnBenchmark(
      const v1::BenchmarkRequest& request,
      const std::function<bool(const v1::BenchmarkResponse&)>& write) override {
    const auto n = static_cast<double>(request.num_vectors());
    if (n > 4) return {.code = 8, .message = "too many vectors"};
    v1::BenchmarkResponse progress;
    progress.mutable_progress()->set_phase("flash");
    progress.mutable_progress()->set_fraction(0.5);
    progress.mutable_progress()->set_seconds_left(1000);
    write(progress);
    v1::BenchmarkResponse event;
    v1::BenchmarkResult* result = event.mutable_result();
    result->set_num_queries(request.num_vectors());
    result->set_dimensions(request.dimensions());
    result->set_flash_time_ms(2 * n * n);
    if (n <= 2) {
      result->set_naive_time_ms(8 * n * n);
      result->set_speedup(4);
    }
    result->set_flash_peak_bytes(1024 * request.num_vectors());
    result->set_naive_peak_bytes(4096 * request.num_vectors() *
                                 request.num_vectors());
    result->set_gflops(50);
    result->set_repetitions(3);
    write(event);
    return {};
  }

  client::WireReply OnMemoryEstimate(
      const v1::MemoryEstimateRequest& request,
      v1::MemoryEstimateResponse* response) override {
    last_estimate_ = request;
    if (request.seq_len() > 4) return {.code = 3, .message = "too long"};
    response->set_flash_bytes(1024 * request.seq_len());
    response->set_naive_bytes(4096 * request.seq_len());
    response->set_peak_bytes(9216 * request.concurrency());
    response->set_flops(INT64_MAX);
    response->set_fits(request.seq_len() < 4);
    response->set_limiting_factor("memory_budget");
    switch (request.goal_case()) {
      case v1::MemoryEstimateRequest::kMaxSeqLenForBudgetBytes:
        response->set_max_seq_len(largest_);
        break;
      case v1::MemoryEstimateRequest::kMaxBatchForBudgetBytes:
        response->set_max_batch(largest_);
        break;
      case v1::MemoryEstimateRequest::kMaxConcurrencyForBudgetBytes:
        response->set_max_concurrency(largest_);
        break;
      default:
        break;
    }
    return {};
  }

  // The tests call the server only one at a time.
  v1::MemoryEstimateRequest last_estimate_;
  std::atomic<int64_t> largest_{12};
};

class AttnctlSweepTest : public testing::Test {
 protected:
  struct Outcome {
    int exit_code = -1;
    std::string out;
    std::string err;
  };

  Outcome RunHere(std::vector<std::string> arguments,
                  bool err_is_terminal = false) {
    arguments.push_back("--server=" + server_.target());
    arguments.emplace_back("--deadline=60");
    std::ostringstream out;
    std::ostringstream err;
    Outcome outcome;
    outcome.exit_code = RunAttnctl(arguments, out, err, err_is_terminal);
    outcome.out = out.str();
    outcome.err = err.str();
    return outcome;
  }

  static std::string Contents(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const std::string svg_ =
      testing::TempDir() + "attnctl_sweep_" +
      testing::UnitTest::GetInstance()->current_test_info()->name() + ".svg";
  SmallServerHandler handler_;
  const client::FakeServer server_{&handler_};
};

TEST_F(AttnctlSweepTest, BenchPrintsATableAndPlots) {
  const Outcome outcome = RunHere({"bench", "--sweep=num-vectors=1..4"});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_THAT(
      outcome.out,
      StartsWith("num_vectors  flash ms      naive ms  speedup  flash memory  "
                 "naive memory  GFLOP/s\n"
                 "          1         2             8     4.00       1.0 KiB  "
                 "     4.0 KiB     50.0\n"
                 "          2         8            32     4.00       2.0 KiB  "
                 "    16.0 KiB     50.0\n"
                 "          4        32  does not fit        -       4.0 KiB  "
                 "    64.0 KiB     50.0\n"
                 "\n"
                 "Time of one run\n"
                 "100 ms +"));
  EXPECT_THAT(outcome.out, HasSubstr("\n\nMost memory held\n"));
  EXPECT_THAT(outcome.out, HasSubstr("* flash   o naive\n"));
  EXPECT_THAT(outcome.err,
              StartsWith("attnctl bench: num_vectors = 1 (1 of 3)\n"
                         "attnctl bench: num_vectors = 2 (2 of 3)\n"
                         "attnctl bench: num_vectors = 4 (3 of 3)\n"));
}

TEST_F(AttnctlSweepTest, BenchWritesCsvJsonAndSvg) {
  const Outcome csv =
      RunHere({"bench", "--sweep=num-vectors=2..4", "--csv", "--svg=" + svg_});
  EXPECT_EQ(csv.exit_code, kOk) << csv.err;
  EXPECT_EQ(csv.out,
            "num_vectors,naive_time_ms,flash_time_ms,speedup,memory_reduction,"
            "num_queries,dimensions,num_heads,dtype,max_abs_error,max_rel_"
            "error,gflops,"
            "peak_gflops,peak_ratio,naive_peak_bytes,flash_peak_bytes,"
            "repetitions\r\n"
            "2,32.0,8.0,4.0,0.0,2,0,1,f32,0.0,0.0,50.0,0.0,0.0,16384,2048,3\r\n"
            "4,,32.0,,0.0,4,0,1,f32,0.0,0.0,50.0,0.0,0.0,65536,4096,3\r\n");
  EXPECT_THAT(Contents(svg_), HasSubstr("<title>naive, 2: 32 ms</title>"));
  EXPECT_THAT(Contents(svg_), HasSubstr("naive, 4: 64 KiB"));

  const Outcome json = RunHere({"bench", "--sweep=num-vectors=2..4", "--json"});
  EXPECT_EQ(json.exit_code, kOk) << json.err;
  const auto rows = nlohmann::json::parse(json.out);
  ASSERT_EQ(rows.size(), 2);
  EXPECT_EQ(rows[0].at("naive_time_ms"), 32);
  EXPECT_TRUE(rows[1].at("naive_time_ms").is_null());
  EXPECT_TRUE(rows[1].at("stats").is_object());
}

TEST_F(AttnctlSweepTest, BenchKeepsWhatItMeasuredBeforeAnError) {
  const Outcome outcome =
      RunHere({"bench", "--sweep=num-vectors=2..16", "--csv", "--svg=" + svg_});
  EXPECT_EQ(outcome.exit_code, kCallFailed);
  EXPECT_THAT(outcome.out, HasSubstr("\r\n2,32.0,"));
  EXPECT_THAT(outcome.out, HasSubstr("\r\n4,,32.0,"));
  EXPECT_THAT(outcome.err,
              HasSubstr("attnctl bench: the sweep ended at num_vectors = 8, "
                        "after 2 of 4 benchmarks\n"
                        "attnctl: RESOURCE_EXHAUSTED: too many vectors"));
  EXPECT_THAT(Contents(svg_), HasSubstr("</svg>"));

  const Outcome nothing = RunHere({"bench", "--sweep=num-vectors=8..16"});
  EXPECT_EQ(nothing.exit_code, kCallFailed);
  EXPECT_EQ(nothing.out, "");
  EXPECT_THAT(nothing.err, HasSubstr("after 0 of 2 benchmarks"));
}

TEST_F(AttnctlSweepTest, BenchShowsTheTimeLeft) {
  EXPECT_THAT(
      RunHere({"bench", "--num-vectors=2"}, true).err,
      HasSubstr("flash    [########........]  50 %, about 17 min left"));
  EXPECT_THAT(RunHere({"bench", "--num-vectors=2"}).err,
              HasSubstr("attnctl bench: 50 % done, about 17 min left\n"));
  // Attention on 2 and on 4 vectors takes 4 and 16 times as long.
  EXPECT_THAT(RunHere({"bench", "--sweep=num-vectors=1..4"}, true).err,
              HasSubstr("num_vectors = 1 (1 of 3) [................]   0 %, "
                        "about 5.8 h left"));
}

TEST_F(AttnctlSweepTest, FilesThatCannotBeWrittenAreReportedFirst) {
  for (const char* command :
       {"bench --sweep=num-vectors=1..2", "estimate --sweep=seq-len=1..2"}) {
    const std::string text = command;
    const size_t space = text.find(' ');
    const Outcome outcome =
        RunHere({text.substr(0, space), text.substr(space + 1),
                 "--svg=/no/such/folder/x.svg"});
    EXPECT_EQ(outcome.exit_code, kFileError) << command;
    EXPECT_EQ(outcome.out, "") << command;
    EXPECT_THAT(outcome.err,
                HasSubstr("attnctl: --svg=/no/such/folder/x.svg: cannot open"))
        << command;
  }
  const Outcome full =
      RunHere({"estimate", "--sweep=seq-len=1..2", "--svg=/dev/full"});
  EXPECT_EQ(full.exit_code, kFileError);
  EXPECT_THAT(full.out, HasSubstr("limiting factor"));
}

TEST_F(AttnctlSweepTest, EstimatePrintsATableAndAPlot) {
  const Outcome outcome =
      RunHere({"estimate", "--sweep=seq-len=1..3+1", "--svg=" + svg_});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_THAT(outcome.out,
              StartsWith("seq_len    flash     naive  peak of all  message  "
                         "fits  limiting factor\n"
                         "      1  1.0 KiB   4.0 KiB          0 B      0 B   "
                         "yes    memory_budget\n"
                         "      2  2.0 KiB   8.0 KiB          0 B      0 B   "
                         "yes    memory_budget\n"
                         "      3  3.0 KiB  12.0 KiB          0 B      0 B   "
                         "yes    memory_budget\n"
                         "\n"
                         "Memory of one request, without message buffers\n"));
  EXPECT_THAT(Contents(svg_), HasSubstr("<title>flash, 3: 3 KiB</title>"));
}

TEST_F(AttnctlSweepTest, EstimateKeepsWhatItHasBeforeAnError) {
  const Outcome outcome =
      RunHere({"estimate", "--sweep=seq-len=2..16", "--json"});
  EXPECT_EQ(outcome.exit_code, kCallFailed);
  const auto rows = nlohmann::json::parse(outcome.out);
  ASSERT_EQ(rows.size(), 2);
  EXPECT_EQ(rows[1].at("seq_len"), 4);
  EXPECT_EQ(rows[1].at("fits"), false);
  EXPECT_EQ(rows[1].at("flops"), INT64_MAX);
  EXPECT_THAT(outcome.err, HasSubstr("the sweep ended at seq_len = 8:\n"
                                     "attnctl: INVALID_ARGUMENT: too long"));
}

TEST_F(AttnctlSweepTest, EveryAxisOfAnEstimateIsSwept) {
  const struct {
    const char* axis;
    int64_t (v1::MemoryEstimateRequest::*field)() const;
  } axes[] = {{"seq-len", &v1::MemoryEstimateRequest::seq_len},
              {"q-len", &v1::MemoryEstimateRequest::q_len},
              {"kv-len", &v1::MemoryEstimateRequest::kv_len},
              {"batch", &v1::MemoryEstimateRequest::batch},
              {"concurrency", &v1::MemoryEstimateRequest::concurrency},
              {"num-q-heads", &v1::MemoryEstimateRequest::num_q_heads}};
  for (const auto& [axis, field] : axes) {
    const Outcome outcome =
        RunHere({"estimate", absl::StrCat("--sweep=", axis, "=3..3"), "--csv"});
    EXPECT_EQ(outcome.exit_code, kOk) << axis << outcome.err;
    EXPECT_EQ((handler_.last_estimate_.*field)(), 3) << axis;
    EXPECT_THAT(outcome.out, HasSubstr("\r\n3,")) << axis;
    EXPECT_THAT(outcome.out, HasSubstr(",memory_budget\r\n")) << axis;
  }
}

TEST_F(AttnctlSweepTest, TheLargestProblemIsASentence) {
  const struct {
    std::vector<std::string> flags;
    const char* sentence;
  } cases[] = {
      {{"--max=seq-len", "--budget=8GiB"},
       "The longest sequence that fits into 8.0 GiB has a length of 12. A "
       "longer one would exceed the budget.\n"},
      {{"--max=seq-len", "--budget=8GiB", "--concurrency=3"},
       "The longest sequence that fits into 8.0 GiB with 3 requests at once "
       "has a length of 12. A longer one would exceed the budget.\n"},
      {{"--max=batch"},
       "The largest batch that fits into the memory budget of this server is "
       "12. A larger one would exceed the budget.\n"},
      {{"--max=concurrency", "--budget=500MB"},
       "The highest concurrency that fits into 476.8 MiB is 12. One more "
       "request would exceed the budget.\n"}};
  for (const auto& [flags, sentence] : cases) {
    std::vector<std::string> arguments = {"estimate"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome outcome = RunHere(arguments);
    EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
    EXPECT_THAT(outcome.out, StartsWith(sentence));
  }
  EXPECT_EQ(handler_.last_estimate_.max_concurrency_for_budget_bytes(),
            500000000);
  EXPECT_THAT(RunHere({"estimate", "--max=concurrency"}).out,
              HasSubstr("peak, 12 at once"));
  EXPECT_TRUE(handler_.last_estimate_.has_max_concurrency_for_budget_bytes());
  const auto json = nlohmann::json::parse(
      RunHere({"estimate", "--max=seq-len", "--json"}).out);
  EXPECT_EQ(json.at("max_seq_len"), 12);
  EXPECT_EQ(json.at("limiting_factor"), "memory_budget");
  EXPECT_FALSE(json.contains("reason"));

  handler_.largest_ = 0;
  const std::string none =
      "Not even one request fits into 1.0 KiB. It exceeds the budget. The "
      "figures are those of one request.";
  const Outcome table =
      RunHere({"estimate", "--max=concurrency", "--budget=1KiB"});
  EXPECT_EQ(table.exit_code, kNoAnswer);
  EXPECT_THAT(table.out, StartsWith(none + "\n"));
  const Outcome none_json =
      RunHere({"estimate", "--max=concurrency", "--budget=1KiB", "--json"});
  EXPECT_EQ(none_json.exit_code, kNoAnswer);
  EXPECT_EQ(nlohmann::json::parse(none_json.out).at("reason"), none);
}

TEST_F(AttnctlSweepTest, TheLargestProblemIsFoundOffline) {
  const Outcome outcome = RunHere({"estimate", "--offline", "--max=seq-len",
                                   "--budget=64MiB", "--threads=1", "--json"});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  const auto found = nlohmann::json::parse(outcome.out);
  const int64_t largest = found.at("max_seq_len");
  EXPECT_EQ(found.at("limiting_factor"), "memory_budget");
  EXPECT_LE(found.at("peak_bytes"), 64 << 20);
  const auto peak_of = [&](int64_t seq_len) -> int64_t {
    return nlohmann::json::parse(
               RunHere({"estimate", "--offline", "--threads=1", "--json",
                        absl::StrCat("--seq-len=", seq_len)})
                   .out)
        .at("peak_bytes");
  };
  EXPECT_EQ(found.at("peak_bytes"), peak_of(largest));
  EXPECT_GT(peak_of(largest + 1), 64 << 20);
  // Without --offline, the message limit is that of the server.
  const auto largest_message = [&](const std::vector<std::string>& limit) {
    std::vector<std::string> arguments = {"estimate", "--offline",
                                          "--max=seq-len", "--budget=8GiB"};
    arguments.insert(arguments.end(), limit.begin(), limit.end());
    const Outcome largest_call = RunHere(arguments);
    EXPECT_THAT(largest_call.out,
                HasSubstr("A longer one would exceed the largest message "
                          "(--max-message-bytes); --transport=stream has no "
                          "such limit.\n"));
    arguments.emplace_back("--json");
    return nlohmann::json::parse(RunHere(arguments).out)
        .at("max_seq_len")
        .get<int64_t>();
  };
  const int64_t by_default = largest_message({});
  EXPECT_EQ(largest_message({"--max-message-bytes=256MiB"}), by_default);
  EXPECT_GT(largest_message({"--max-message-bytes=512MiB"}), by_default);
  EXPECT_LT(largest_message({"--max-message-bytes=100000"}), 100);
  const Outcome unlimited =
      RunHere({"estimate", "--offline", "--max=batch", "--seq-len=8"});
  EXPECT_EQ(unlimited.exit_code, kUsage);
  EXPECT_THAT(unlimited.err, HasSubstr("attnctl: --budget: expected a number"));
  EXPECT_THAT(unlimited.err, HasSubstr("got nothing\n"));
  // The longest problem that is not too large to be computed.
  EXPECT_THAT(RunHere({"estimate", "--offline", "--max=seq-len",
                       "--budget=1TiB", "--transport=shared-memory"})
                  .out,
              HasSubstr("has a length of 67108864. A longer one would exceed "
                        "what can be computed.\n"));
}

TEST_F(AttnctlSweepTest, FlagsThatDoNotGoTogetherAreErrors) {
  const struct {
    std::vector<std::string> arguments;
    const char* error;
  } cases[] = {
      {{"bench", "--csv"}, "--csv requires --sweep"},
      {{"bench", "--svg=x"}, "--svg requires --sweep"},
      {{"bench", "--sweep=num-vectors=1..2", "--csv", "--json"}, "excludes"},
      {{"bench", "--sweep=seq-len=1..2"},
       "--sweep: expected AXIS=FIRST..LAST with one of the axes num-vectors, "
       "dimensions, num-heads, got 'seq-len=1..2'"},
      {{"estimate", "--sweep=seq-len=2..1"}, "--sweep: expected seq-len=FIRST"},
      {{"estimate", "--sweep=seq-len=1..2", "--max=batch"}, "excludes"},
      {{"estimate", "--max=heads"}, "--max"},
      {{"estimate", "--max=seq-len", "--seq-len=8"},
       "attnctl: --seq-len: expected nothing, because --max=seq-len searches "
       "it, got 8\n"},
      {{"estimate", "--max=batch", "--batch=2"}, "--batch: expected nothing"},
      {{"estimate", "--max=concurrency", "--concurrency=1"},
       "--concurrency: expected nothing"},
      {{"estimate", "--budget=8GiB"}, "--budget requires --max"},
      {{"estimate", "--max=batch", "--budget=0"},
       "--budget: expected 1 to 9223372036854775807 bytes, got 0"},
      {{"estimate", "--max=batch", "--budget=8G"},
       "--budget: expected a number of bytes such as 8GiB"},
      {{"estimate", "--max=batch", "--budget=9000000TiB"},
       "--budget: expected at most 9223372036854775807 bytes, got 9000000TiB"},
      {{"info", "--max-message-bytes=2GiB"},
       "--max-message-bytes: expected 1 to 2147483647 bytes, got 2GiB"}};
  for (const auto& [arguments, error] : cases) {
    const Outcome outcome = RunHere(arguments);
    EXPECT_EQ(outcome.exit_code, kUsage) << error;
    EXPECT_THAT(outcome.err, HasSubstr(error));
    EXPECT_EQ(outcome.out, "") << error;
  }
  EXPECT_EQ(RunHere({"info", "--max-message-bytes=16MiB"}).exit_code, kOk);
  EXPECT_THAT(RunHere({"estimate", "--seq-len=1"}).out,
              Not(HasSubstr("fits into")));
}

}  // namespace
}  // namespace attnd::attnctl
