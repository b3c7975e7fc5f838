#include "client/attnctl/attnctl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/attnctl/exit_codes.h"
#include "client/attnctl/npy.h"
#include "tests/client/error_status.h"
#include "tests/client/fake_server.h"

namespace attnd::attnctl {
namespace {

using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;

  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

Outcome RunTool(const std::vector<std::string>& arguments,
                bool err_is_terminal = false) {
  std::ostringstream out;
  std::ostringstream err;
  Outcome outcome;
  outcome.exit_code = RunAttnctl(arguments, out, err, err_is_terminal);
  outcome.out = out.str();
  outcome.err = err.str();
  return outcome;
}

TEST(AttnctlUsageTest, HelpTeachesAndListsExitCodes) {
  const Outcome help = RunTool({"--help"});
  EXPECT_EQ(help.exit_code, kOk);
  EXPECT_THAT(help.out, HasSubstr("Examples:"));
  EXPECT_THAT(help.out, HasSubstr(kExitCodesHelp));
  for (const char* command : {"attention", "self", "cross", "backward", "bench",
                              "estimate", "info", "health", "top"}) {
    const Outcome of_command = RunTool({command, "--help"});
    EXPECT_EQ(of_command.exit_code, kOk) << command;
    EXPECT_THAT(of_command.out, HasSubstr("Example")) << command;
  }
}

TEST(AttnctlUsageTest, VersionIsOneLine) {
  const Outcome version = RunTool({"--version"});
  EXPECT_EQ(version.exit_code, kOk);
  EXPECT_THAT(version.out, testing::MatchesRegex("attnctl [0-9.]+\n"));
}

TEST(AttnctlUsageTest, WrongArgumentsExitWithUsage) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"frobnicate"},
      {"info", "--frobnicate"},
      {"attention", "--query=q.npy"},
      {"self", "--sequence=x.npy", "--causal=sideways"},
      {"self", "--sequence=x.npy", "--layout=sdhb"},
      {"self", "--sequence=x.npy", "--dtype=f64"},
      {"self", "--sequence=x.npy", "--key-lengths=1,two"},
      {"self", "--sequence=x.npy", "--window-left=wide"},
      {"backward", "--query=q.npy"},
      {"bench", "--num-vectors=many"},
      {"info", "--deadline=-1"},
      {"info", "--max-message-bytes=0"},
      {"top", "--interval=0"},
      {"top", "--interval=-1"},
      {"top", "--interval=inf"},
      {"top", "--once=maybe"},
      {"estimate", "--offline"},
      {"estimate", "--offline", "--seq-len=8", "--num-q-heads=-1"}};
  for (const auto& arguments : wrong) {
    const Outcome outcome = RunTool(arguments);
    EXPECT_EQ(outcome.exit_code, kUsage) << testing::PrintToString(arguments);
    EXPECT_NE(outcome.err, "") << testing::PrintToString(arguments);
    EXPECT_EQ(outcome.out, "") << testing::PrintToString(arguments);
  }
}

// An empty value must not take the next flag as its value.
TEST(AttnctlUsageTest, AnEmptyValueIsNotTheNextFlag) {
  const Outcome rate =
      RunTool({"estimate", "--offline", "--seq-len=", "--json"});
  EXPECT_EQ(rate.exit_code, kUsage);
  EXPECT_THAT(rate.err, HasSubstr("--seq-len"));
  EXPECT_THAT(rate.err, testing::Not(HasSubstr("--json")));
}

TEST(AttnctlUsageTest, SaysWhereNobodyListens) {
  const std::string server =
      "--server=unix:" + testing::TempDir() + "nobody-listens-here";
  // These ask whether a server is there, so they do not wait for a server.
  const std::vector<std::vector<std::string>> questions = {
      {"info"}, {"health"}, {"top", "--once"}, {"top"}};
  for (std::vector<std::string> arguments : questions) {
    arguments.insert(arguments.end(), {server, "--deadline=0"});
    const Outcome outcome = RunTool(arguments);
    EXPECT_EQ(outcome.exit_code, kUnavailable) << arguments[0];
    EXPECT_EQ(outcome.out, "") << arguments[0];
    EXPECT_THAT(outcome.err, HasSubstr("attnctl: UNAVAILABLE"));
    EXPECT_THAT(outcome.err, HasSubstr("nobody-listens-here"));
    EXPECT_THAT(outcome.err, Not(HasSubstr("trying again")));
  }
  const std::vector<std::vector<std::string>> calls = {
      {"bench", "-n8"}, {"estimate", "--seq-len=8"}};
  for (std::vector<std::string> arguments : calls) {
    arguments.insert(arguments.end(), {server, "--deadline=0.5"});
    const Outcome outcome = RunTool(arguments);
    EXPECT_EQ(outcome.exit_code, kUnavailable) << arguments[0];
    // One line says that attnctl tries again. The error follows at the
    // deadline.
    const std::string said =
        "; trying again until the deadline of 0.5 s has passed (Ctrl-C stops)\n"
        "attnctl: UNAVAILABLE: ";
    EXPECT_THAT(outcome.err, HasSubstr(said)) << arguments[0];
    EXPECT_EQ(outcome.err.find("trying again until"),
              outcome.err.rfind("trying again until"));
    EXPECT_THAT(outcome.err, HasSubstr(" (tried "));
    EXPECT_THAT(outcome.err, HasSubstr("nobody-listens-here"));
  }
}

// A benchmark has no deadline of its own, but a script must not wait forever.
TEST(AttnctlUsageTest, BenchWaitsForAWhileWithoutADeadline) {
  class StartingHandler final : public client::FakeHandler {
   public:
    client::WireReply OnBenchmark(
        const v1::BenchmarkRequest& request,
        const std::function<bool(const v1::BenchmarkResponse&)>& write)
        override {
      if (!refused_.exchange(true)) return {.code = 14, .message = "starting"};
      return FakeHandler::OnBenchmark(request, write);
    }

   private:
    std::atomic<bool> refused_ = false;
  };
  StartingHandler handler;
  const client::FakeServer server(&handler);
  const Outcome outcome =
      RunTool({"bench", "-n8", "--server=" + server.target()});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_THAT(outcome.err,
              HasSubstr("attnctl: UNAVAILABLE: starting; trying again until it "
                        "has failed 32 times, because --deadline is not set "
                        "(Ctrl-C stops)\n"));

  StartingHandler other_handler;
  const client::FakeServer other(&other_handler);
  EXPECT_THAT(
      RunTool({"bench", "-n8", "--deadline=0", "--server=" + other.target()})
          .err,
      HasSubstr("trying again until it succeeds, because --deadline sets no "
                "limit (Ctrl-C stops)\n"));
  EXPECT_THAT(RunTool({"bench", "--help"}).out,
              HasSubstr("about a minute for a server"));
}

TEST(AttnctlEstimateTest, WorksOffline) {
  const Outcome table = RunTool({"estimate", "--offline", "--seq-len=4096"});
  EXPECT_EQ(table.exit_code, kOk);
  EXPECT_THAT(table.out, HasSubstr("6.0 MiB (6291456)"));
  EXPECT_THAT(table.out, Not(HasSubstr("fits")));

  const Outcome json =
      RunTool({"estimate", "--offline", "--seq-len=4096", "--json"});
  EXPECT_EQ(json.json().at("input_bytes"), 6291456);
  EXPECT_FALSE(json.json().contains("fits"));
}

// A figure that an int64 cannot hold is the largest int64.
TEST(AttnctlEstimateTest, SaysThatAFigureIsTooLargeToBeExact) {
  const Outcome table =
      RunTool({"estimate", "--offline", "--seq-len=9223372036854775807"});
  EXPECT_THAT(table.out, ContainsRegex("input +more than 8 EiB\n"));
  EXPECT_THAT(table.out, ContainsRegex("operations +more than 9.2e\\+18\n"));
  EXPECT_THAT(table.out, Not(HasSubstr("9223372036854775807")));
}

TEST(AttnctlEstimateTest, SaysOfflineThatAProblemIsTooLargeForAnyServer) {
  const std::vector<std::string> command = {
      "estimate", "--offline", "--transport=shared-memory", "--seq-len=1",
      "--batch=144115188075855872"};
  const Outcome table = RunTool(command);
  EXPECT_EQ(table.exit_code, kOk);
  EXPECT_THAT(table.out, ContainsRegex("fits no server +the problem is too "
                                       "large to be computed\n"));
  std::vector<std::string> json_command = command;
  json_command.emplace_back("--json");
  const auto json = RunTool(json_command).json();
  EXPECT_EQ(json.at("fits"), false);
  EXPECT_EQ(json.at("limiting_factor"), "int64_range");

  const Outcome sweep =
      RunTool({"estimate", "--offline", "--sweep=seq-len=50000000..200000000"});
  EXPECT_EQ(sweep.exit_code, kOk);
  EXPECT_EQ(sweep.err,
            "attnctl estimate: from seq_len = 100000000, the problem fits no "
            "server, because it is too large to be computed\n");
}

// attnctl must not clamp, cut or guess a number. The error must name its flag.
TEST(AttnctlUsageTest, NumbersThatAreNotHeldAsWrittenAreErrors) {
  struct Kind {
    std::vector<std::string> command;
    std::vector<std::string> flags;
  };
  const Kind whole_numbers[] = {
      {{"bench"},
       {"--num-vectors", "--dimensions", "--num-heads", "--block-size",
        "--threads", "--repetitions"}},
      {{"estimate", "--offline"},
       {"--seq-len", "--q-len", "--kv-len", "--dimensions", "--head-dim",
        "--v-head-dim", "--batch", "--num-q-heads", "--num-kv-heads",
        "--threads", "--concurrency", "--bias-shape", "--mask-shape"}},
      {{"self", "-s", "x.npy"},
       {"--block-size", "--window-left", "--window-right", "--query-offsets",
        "--query-lengths", "--key-lengths", "--cu-seqlens-q",
        "--cu-seqlens-k"}}};
  const Kind floats[] = {{{"self", "-s", "x.npy"},
                          {"--scale", "--temperature", "--logits-soft-cap",
                           "--alibi-slopes", "--sink-logits"}}};
  const Kind doubles[] = {
      {{"self", "-s", "x.npy"}, {"--max-error", "--deadline"}},
      {{"top"}, {"--interval"}},
      {{"estimate", "--offline"},
       {"--rate", "--p99-ms", "--gflops", "--gigabytes-per-second"}}};
  const auto expect_refused = [](const auto& kinds,
                                 const std::vector<std::string>& texts) {
    for (const Kind& kind : kinds) {
      for (const std::string& flag : kind.flags) {
        for (const std::string& text : texts) {
          std::vector<std::string> arguments = kind.command;
          arguments.push_back(absl::StrCat(flag, "=", text));
          const Outcome outcome = RunTool(arguments);
          EXPECT_EQ(outcome.exit_code, kUsage) << arguments.back();
          EXPECT_THAT(outcome.err, HasSubstr(flag + ": expected "))
              << arguments.back();
          // If the flag takes a list, the error names the wrong number.
          EXPECT_THAT(outcome.err, HasSubstr(text.substr(text.rfind(',') + 1)))
              << arguments.back();
        }
      }
    }
  };
  expect_refused(whole_numbers,
                 {"9999999999999999999", "-9999999999999999999", "1e3", "1.5",
                  "1.", "0x10", " 5", "5 ", "five", "1_000", "1'000", "inf"});
  expect_refused(floats, {"1e39", "1e-46", "0x1p3", " 5", "nan", "1e", "half"});
  expect_refused(doubles, {"1e309", "1e-400", "0x1p3", " 5", "nan", "1s"});
  const Kind lists[] = {
      {{"self", "-s", "x.npy"}, {"--key-lengths", "--alibi-slopes"}},
      {{"estimate", "--offline"}, {"--bias-shape"}}};
  expect_refused(lists, {"1,,2", ",1", "1,", "1, 2", "1;2", "1,two"});
  EXPECT_EQ(
      RunTool({"info", "--max-message-bytes=9999999999999999999"}).exit_code,
      kUsage);
  EXPECT_THAT(RunTool({"info", "--deadline=-1"}).err,
              HasSubstr("--deadline: expected 0 or more, got -1"));

  // Flags that take floats take these, and leading zeros do not make octals.
  EXPECT_EQ(RunTool({"self", "-s", "/no/such/x.npy", "--scale=1e20",
                     "--sink-logits=-inf,.5,1e-40", "--window-left=-0",
                     "--max-error=inf"})
                .exit_code,
            kFileError);
  EXPECT_EQ(RunTool({"estimate", "--offline", "--seq-len=010", "--json"})
                .json()
                .at("input_bytes"),
            3 * 10 * 128 * 4);
}

// This server sends terminal escapes and line feeds in its texts.
class HostileHandler : public client::FakeHandler {
 public:
  client::WireReply OnAttention(const client::FakeCall&,
                                v1::AttentionResponse*) override {
    return {.code = 3, .message = kText};
  }
  client::WireReply OnBenchmark(
      const v1::BenchmarkRequest&,
      const std::function<bool(const v1::BenchmarkResponse&)>& write) override {
    v1::BenchmarkResponse event;
    event.mutable_progress()->set_phase(kText);
    write(event);
    event.mutable_result()->mutable_stats()->set_isa(kText);
    write(event);
    return {};
  }
  client::WireReply OnServerInfo(v1::GetServerInfoResponse* response) override {
    response->set_version(kText);
    response->add_features(kText);
    return {};
  }

  static constexpr char kText[] = "no\x1b[2J\u009b2J\x7f\nattnctl: all is well";
};

TEST(AttnctlScreenTest, EscapesWhatServersSay) {
  HostileHandler handler;
  const client::FakeServer server(&handler);
  const std::string path = testing::TempDir() + "attnctl_escapes.npy";
  const std::vector<float> four(4);
  ASSERT_TRUE(WriteNpy(path, client::DataType::kF32, {2, 2},
                       std::as_bytes(std::span(four)))
                  .ok());
  const std::vector<std::vector<std::string>> commands = {
      {"info"},
      {"info", "--json"},
      {"top", "--once", "--interval=0.1"},
      {"top", "--once", "--interval=0.1", "--json"},
      {"bench"},
      {"bench", "--json"},
      {"self", "--sequence=" + path}};
  for (std::vector<std::string> arguments : commands) {
    arguments.push_back("--server=" + server.target());
    const Outcome outcome = RunTool(arguments);
    const std::string all = outcome.out + outcome.err;
    EXPECT_THAT(all, HasSubstr("attnctl: all is well")) << arguments[0];
    EXPECT_THAT(all, Not(HasSubstr("\nattnctl: all is well"))) << arguments[0];
    for (const char* raw : {"\x1b", "\x7f", "\u009b"}) {
      EXPECT_THAT(all, Not(HasSubstr(raw))) << arguments[0];
    }
  }
  // The terminal must get no escapes except those of the progress itself.
  const std::string drawn =
      RunTool({"bench", "--server=" + server.target()}, true).err;
  EXPECT_THAT(drawn, HasSubstr("\r\x1b[Kno\\x1b[2J"));
}

TEST(AttnctlScreenTest, EscapesWhatFilesSay) {
  const std::string path = testing::TempDir() + "attnctl_header.npy";
  std::ofstream(path) << std::string("\x93NUMPY\x01\x00\x10\x00", 10)
                      << "{\x1b[2J\n: no dict}";
  const Outcome outcome = RunTool({"self", "--sequence=" + path});
  EXPECT_EQ(outcome.exit_code, kFileError);
  EXPECT_THAT(outcome.err, HasSubstr("{\\x1b[2J\\x0a"));
}

class AttnctlTest : public testing::Test {
 public:
  AttnctlTest() {
    std::filesystem::remove_all(folder_);  // from an earlier run
    std::filesystem::create_directories(folder_);
    Write("q.npy", {2, 3, 2}, 12);
    Write("k.npy", {2, 4, 2}, 16);
    Write("v.npy", {2, 4, 1}, 8);
  }

  std::string Path(const std::string& name) { return folder_ + "/" + name; }

  // Writes a file with `count` elements. Element i is `step` times i.
  void Write(const std::string& name, const std::vector<int64_t>& shape,
             size_t count, float step = 1) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = step * static_cast<float>(i);
    ASSERT_TRUE(WriteNpy(Path(name), client::DataType::kF32, shape,
                         std::as_bytes(std::span(values)))
                    .ok());
  }

  Outcome RunHere(std::vector<std::string> arguments) {
    arguments.push_back("--server=" + server_.target());
    return RunTool(arguments);
  }

  Outcome RunAttention(std::vector<std::string> more) {
    std::vector<std::string> arguments = {
        "attention", "--query=" + Path("q.npy"), "--key=" + Path("k.npy"),
        "--value=" + Path("v.npy")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunHere(std::move(arguments));
  }

  std::string folder_ =
      testing::TempDir() + "attnctl_test_" +
      testing::UnitTest::GetInstance()->current_test_info()->name();
  client::FakeHandler handler_;
  client::FakeServer server_{&handler_};
};

TEST_F(AttnctlTest, AttentionWritesWhatTheServerAnswers) {
  const Outcome outcome = RunAttention(
      {"--output=" + Path("o.npy"), "--lse=" + Path("lse.npy"), "--scale=0.25",
       "--temperature=2", "--block-size=16", "--causal=top-left"});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("[2, 3, 1]"));
  const auto output = ReadNpyAsDouble(Path("o.npy"));
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_THAT(output->shape, ElementsAre(2, 3, 1));
  EXPECT_THAT(output->values, ElementsAre(0, 1, 2, 3, 4, 5));
  const auto lse = ReadNpyAsDouble(Path("lse.npy"));
  ASSERT_TRUE(lse.ok()) << lse.status();
  EXPECT_THAT(lse->shape, ElementsAre(2, 3));
  EXPECT_EQ(lse->values.back(), -5);

  const auto calls = handler_.calls();
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls[0].options.scale(), 0.25f);
  EXPECT_EQ(calls[0].options.temperature(), 2.0f);
  EXPECT_EQ(calls[0].options.block_size(), 16);
  EXPECT_EQ(calls[0].options.causal(), v1::CAUSAL_TOP_LEFT);
  EXPECT_TRUE(calls[0].options.return_lse());
}

TEST_F(AttnctlTest, EveryOptionHasItsFlag) {
  Write("b.npy", {3, 4}, 12);
  const std::vector<std::byte> mask(4, std::byte{1});
  ASSERT_TRUE(WriteNpy(Path("m.npy"), client::DataType::kBool, {4}, mask).ok());
  const Outcome outcome = RunAttention(
      {"--layout=bshd", "--query-offsets=-1,2", "--window-left=0",
       "--window-right=7", "--logits-soft-cap=30", "--alibi-slopes=0.5,-1e-3",
       "--sink-logits=-inf,2", "--query-lengths=3", "--key-lengths=4",
       "--cu-seqlens-q=0,2", "--cu-seqlens-k=0,3", "--precision=bf16",
       "--output-dtype=bf16", "--bias=" + Path("b.npy"),
       "--mask=" + Path("m.npy"), "--output=" + Path("o.npy")});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  const v1::AttentionOptions options = handler_.calls().at(0).options;
  EXPECT_EQ(options.layout(), v1::LAYOUT_BSHD);
  EXPECT_THAT(options.query_offsets(), ElementsAre(-1, 2));
  EXPECT_TRUE(options.has_window_left());
  EXPECT_EQ(options.window_right(), 7);
  EXPECT_EQ(options.logits_soft_cap(), 30);
  EXPECT_THAT(options.alibi_slopes(), ElementsAre(0.5f, -1e-3f));
  EXPECT_THAT(options.sink_logits(),
              ElementsAre(-std::numeric_limits<float>::infinity(), 2));
  EXPECT_THAT(options.query_lengths(), ElementsAre(3));
  EXPECT_THAT(options.key_lengths(), ElementsAre(4));
  EXPECT_THAT(options.cu_seqlens_q(), ElementsAre(0, 2));
  EXPECT_THAT(options.cu_seqlens_k(), ElementsAre(0, 3));
  EXPECT_EQ(options.precision(), v1::PRECISION_BF16);
  EXPECT_EQ(options.output_dtype(), v1::DATA_TYPE_BF16);
  EXPECT_EQ(options.bias().data().size(), 48U);
  EXPECT_EQ(options.mask().dtype(), v1::DATA_TYPE_BOOL);
  EXPECT_EQ(options.mask().data(), "\x01\x01\x01\x01");
  EXPECT_EQ(ReadNpy(Path("o.npy"))->data.type(), client::DataType::kBF16);
}

TEST_F(AttnctlTest, RoundsBeforeItSends) {
  EXPECT_EQ(RunAttention({"--dtype=f16"}).exit_code, kOk);
  const auto call = handler_.calls().at(0);
  for (const v1::Tensor& tensor : call.tensors) {
    EXPECT_EQ(tensor.dtype(), v1::DATA_TYPE_F16);
  }
  EXPECT_EQ(call.tensors[0].data().substr(0, 4), std::string("\0\0\0\x3c", 4));
  EXPECT_EQ(call.options.output_dtype(), v1::DATA_TYPE_F16);
}

TEST_F(AttnctlTest, TakesFloat64WhereDtypeSaysWhatItBecomes) {
  const double double_value =
      1 + 0x1p-8 + 0x1p-40;  // rounds up if rounded to bfloat16 only once
  const std::string header =
      "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 1L), }";
  std::ofstream(Path("d.npy"), std::ios::binary)
      << std::string("\x93NUMPY\x01\0", 8) << static_cast<char>(header.size())
      << '\0' << header
      << absl::string_view(reinterpret_cast<const char*>(&double_value), 8);
  const std::vector<std::string> inputs = {
      "attention",   "-q", Path("d.npy"), "-k",
      Path("d.npy"), "-v", Path("d.npy")};
  Outcome outcome = RunHere(inputs);
  EXPECT_EQ(outcome.exit_code, kFileError);
  EXPECT_THAT(outcome.err,
              HasSubstr("attnctl: --query=" + Path("d.npy") + ": expected "));
  EXPECT_THAT(outcome.err,
              HasSubstr("float64 ('<f8'); add --dtype=f32, f16 or"));

  std::vector<std::string> rounding = inputs;
  rounding.insert(rounding.end(), {"--dtype=bf16", "--bias=" + Path("d.npy")});
  EXPECT_EQ(RunHere(rounding).exit_code, kOk);
  const auto call = handler_.calls().at(0);
  for (const v1::Tensor& tensor : call.tensors) {
    EXPECT_EQ(tensor.dtype(), v1::DATA_TYPE_BF16);
    EXPECT_EQ(tensor.data(), "\x81\x3f");
  }
  EXPECT_EQ(call.options.bias().dtype(), v1::DATA_TYPE_BF16);

  // The server accepts the type of this bias, so attnctl does not convert it.
  Write("one.npy", {1, 1, 1}, 1);
  rounding.back() = "--bias=" + Path("one.npy");
  EXPECT_EQ(RunHere(rounding).exit_code, kOk);
  EXPECT_EQ(handler_.calls().at(1).options.bias().dtype(), v1::DATA_TYPE_F32);
  outcome = RunAttention({"--bias=" + Path("d.npy")});
  EXPECT_EQ(outcome.exit_code, kFileError);
  EXPECT_THAT(outcome.err, HasSubstr("--bias=" + Path("d.npy")));

  std::vector<std::string> backward = inputs;
  backward[0] = "backward";
  backward.insert(backward.end(),
                  {"--output", Path("d.npy"), "--lse", Path("d.npy"),
                   "--grad-output", Path("d.npy")});
  EXPECT_EQ(RunHere(backward).exit_code, kFileError);
  backward.emplace_back("--dtype=f32");
  EXPECT_EQ(RunHere(backward).exit_code, kOk);
  const auto backward_call = handler_.calls().at(2);
  for (const v1::Tensor& tensor : backward_call.tensors) {
    EXPECT_EQ(tensor.dtype(), v1::DATA_TYPE_F32);
  }
  backward.back() = "--dtype=f16";
  EXPECT_EQ(RunHere(backward).exit_code, kUsage);
}

TEST_F(AttnctlTest, RefusesAnswersThatWouldOverwriteEachOther) {
  Write("there.npy", {1}, 1);
  std::filesystem::create_symlink(Path("there.npy"), Path("link.npy"));
  for (const auto& [output, lse] : {std::pair{"o.npy", "o.npy"},
                                    {"o.npy", "./o.npy"},
                                    {"there.npy", "link.npy"}}) {
    const Outcome outcome =
        RunAttention({"--output=" + Path(output), "--lse=" + Path(lse)});
    EXPECT_EQ(outcome.exit_code, kUsage) << lse;
    EXPECT_EQ(outcome.err,
              "attnctl: --lse: expected a file other than --output=" +
                  Path(output) + ", got " + Path(lse) + "\n");
  }
  EXPECT_EQ(RunHere({"backward", "-q", "q", "-k", "k", "-v", "v", "--output=o",
                     "--lse=l", "--grad-output=g", "--grad-query=" + Path("d"),
                     "--grad-value=" + Path("d")})
                .exit_code,
            kUsage);
  EXPECT_THAT(handler_.calls(), testing::IsEmpty());
  EXPECT_EQ(RunAttention({"--output=/dev/null", "--lse=/dev/null"}).exit_code,
            kOk);
}

TEST_F(AttnctlTest, RefusesToOverwriteWhatAnAnswerIsComparedWith) {
  Write("there.npy", {1}, 1);
  const std::string path = Path("there.npy");
  for (const char* expected : {"--expected=", "--expected-lse="}) {
    const Outcome outcome =
        RunAttention({"--output=" + path, expected + path, "--lse=/dev/null"});
    EXPECT_EQ(outcome.exit_code, kUsage);
    EXPECT_THAT(outcome.err,
                testing::StartsWith("attnctl: --output: expected a file other "
                                    "than "));
  }
  EXPECT_THAT(handler_.calls(), testing::IsEmpty());
}

TEST_F(AttnctlTest, BackwardWritesGradients) {
  Write("o.npy", {2, 3, 1}, 6);
  Write("l.npy", {2, 3}, 6);
  Write("same.npy", {2, 4, 1}, 8);
  const Outcome outcome = RunHere(
      {"backward", "--query=" + Path("q.npy"), "--key=" + Path("k.npy"),
       "--value=" + Path("v.npy"), "--output=" + Path("o.npy"),
       "--lse=" + Path("l.npy"), "--grad-output=" + Path("o.npy"),
       "--grad-query=" + Path("dq.npy"), "--grad-key=" + Path("dk.npy"),
       "--expected-grad-value=" + Path("same.npy"), "--causal=top-left"});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("grad_value vs"));
  EXPECT_THAT(ReadNpy(Path("dq.npy"))->shape, ElementsAre(2, 3, 2));
  EXPECT_THAT(ReadNpy(Path("dk.npy"))->shape, ElementsAre(2, 4, 2));
  const auto call = handler_.calls().at(0);
  EXPECT_EQ(call.method, "AttentionBackward");
  EXPECT_EQ(call.tensors.size(), 6U);
  EXPECT_EQ(call.options.causal(), v1::CAUSAL_TOP_LEFT);
}

TEST_F(AttnctlTest, SelfAndCrossCallTheirMethods) {
  EXPECT_EQ(RunHere({"self", "-s", Path("q.npy")}).exit_code, kOk);
  EXPECT_EQ(
      RunHere({"cross", "-q", Path("q.npy"), "-s", Path("k.npy")}).exit_code,
      kOk);
  const auto calls = handler_.calls();
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0].method, "SelfAttention");
  EXPECT_EQ(calls[1].method, "CrossAttention");
}

TEST_F(AttnctlTest, ComparesWithWhatWasExpected) {
  Write("same.npy", {2, 3, 1}, 6);
  Write("near.npy", {2, 3, 1}, 6, 1.125f);

  Outcome outcome = RunAttention({"--expected=" + Path("same.npy")});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("worst error 0, "));
  EXPECT_THAT(outcome.out, HasSubstr(": agrees"));

  outcome = RunAttention({"--expected=" + Path("near.npy")});
  EXPECT_EQ(outcome.exit_code, kDisagrees);
  EXPECT_THAT(outcome.out,
              HasSubstr("worst error 0.625 at [1, 2, 0], allowed 1e-05: "
                        "DISAGREES"));

  outcome = RunAttention(
      {"--expected=" + Path("near.npy"), "--max-error=0.625", "--json"});
  EXPECT_EQ(outcome.exit_code, kOk);
  const nlohmann::json comparison = outcome.json().at("comparisons").at(0);
  EXPECT_EQ(comparison.at("worst_error"), 0.625);
  EXPECT_EQ(comparison.at("agrees"), true);
}

// The call itself succeeded, so attnctl still writes and reports its answer.
TEST_F(AttnctlTest, AnotherShapeThanExpectedDisagrees) {
  Write("flat.npy", {6}, 6);
  Outcome outcome = RunAttention({"--expected=" + Path("flat.npy")});
  EXPECT_EQ(outcome.exit_code, kDisagrees);
  EXPECT_THAT(outcome.out, HasSubstr("flat.npy: expected shape [6], got "
                                     "[2, 3, 1]: DISAGREES"));

  outcome = RunAttention(
      {"--expected=" + Path("flat.npy"), "--lse=" + Path("lse.npy"), "--json"});
  EXPECT_EQ(outcome.exit_code, kDisagrees);
  const nlohmann::json comparison = outcome.json().at("comparisons").at(0);
  EXPECT_EQ(comparison.at("agrees"), false);
  EXPECT_EQ(comparison.at("error"), "expected shape [6], got [2, 3, 1]");
  EXPECT_TRUE(ReadNpy(Path("lse.npy")).ok());
}

TEST_F(AttnctlTest, WritesAnswersBeforeItReadsWhatWasExpected) {
  EXPECT_EQ(RunAttention({"--expected=" + Path("missing.npy"),
                          "--output=" + Path("o.npy")})
                .exit_code,
            kFileError);
  EXPECT_TRUE(ReadNpy(Path("o.npy")).ok());
}

TEST_F(AttnctlTest, ExpectedLseAsksForLse) {
  Write("lse.npy", {2, 3}, 6, -1);
  const Outcome outcome = RunAttention({"--expected-lse=" + Path("lse.npy")});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("lse vs"));
}

TEST_F(AttnctlTest, FileErrorsHaveTheirOwnExitCode) {
  EXPECT_EQ(RunHere({"self", "-s", Path("missing.npy")}).exit_code, kFileError);
  EXPECT_EQ(RunAttention({"--output=/nowhere/o.npy"}).exit_code, kFileError);
  EXPECT_EQ(RunAttention({"--expected=" + Path("missing.npy")}).exit_code,
            kFileError);
}

TEST_F(AttnctlTest, FileErrorsNameTheFlag) {
  for (const char* at_fault :
       {"--query", "--key", "--value", "--bias", "--mask", "--output", "--lse",
        "--expected", "--expected-lse"}) {
    std::vector<std::string> arguments = {"attention"};
    for (const auto& [flag, file] : {std::pair{"--query", "q.npy"},
                                     {"--key", "k.npy"},
                                     {"--value", "v.npy"}}) {
      if (flag != absl::string_view(at_fault)) {
        arguments.push_back(absl::StrCat(flag, "=", Path(file)));
      }
    }
    arguments.push_back(absl::StrCat(at_fault, "=", Path("nowhere/x.npy")));
    const Outcome outcome = RunHere(arguments);
    EXPECT_EQ(outcome.exit_code, kFileError);
    EXPECT_EQ(outcome.err,
              absl::StrCat("attnctl: ", arguments.back(),
                           ": cannot open: No such file or directory\n"));
  }
}

TEST_F(AttnctlTest, StreamsAnswersThatAreTooLargeForAMessage) {
  // Two small inputs whose answer has 10^6 elements.
  Write("tall.npy", {1000, 1}, 1000);
  Write("one.npy", {1, 1}, 1);
  Write("wide.npy", {1, 1000}, 1000);
  const Outcome outcome = RunHere(
      {"attention", "-q", Path("tall.npy"), "-k", Path("one.npy"), "-v",
       Path("wide.npy"), "-o", Path("o.npy"), "--max-message-bytes=1000000"});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_EQ(handler_.calls().at(0).method, "AttentionStream");
  EXPECT_THAT(ReadNpy(Path("o.npy"))->shape, ElementsAre(1000, 1000));
}

TEST_F(AttnctlTest, RefusesAnswersThatNoMemoryHolds) {
  Write("tall.npy", {int64_t{1} << 31, 0}, 0);
  Write("wide.npy", {0, int64_t{1} << 31}, 0);
  const Outcome outcome = RunHere({"attention", "-q", Path("tall.npy"), "-k",
                                   Path("tall.npy"), "-v", Path("wide.npy")});
  EXPECT_EQ(outcome.exit_code, kCallFailed);
  EXPECT_THAT(outcome.err,
              HasSubstr("RESOURCE_EXHAUSTED: output: not enough memory"));
}

TEST_F(AttnctlTest, RefusesGradientsThatCouldNotArrive) {
  const Outcome outcome =
      RunHere({"backward", "--query=" + Path("q.npy"), "--key=" + Path("k.npy"),
               "--value=" + Path("v.npy"), "--output=" + Path("q.npy"),
               "--lse=" + Path("q.npy"), "--grad-output=" + Path("q.npy"),
               "--max-message-bytes=40"});
  EXPECT_EQ(outcome.exit_code, kCallFailed);
  EXPECT_THAT(outcome.err, HasSubstr("MESSAGE_TOO_LARGE"));
  EXPECT_THAT(outcome.err, HasSubstr("an answer of shape [2, 3, 2]"));
}

// Refuses a field in the same way as the server.
class RefusingHandler final : public client::FakeHandler {
 public:
  client::WireReply OnServerInfo(v1::GetServerInfoResponse*) override {
    return {.code = 3,
            .message = "a.b: expected 1, got 2",
            .details = client::SerializedRefusal("INVALID_FIELD", "a.b",
                                                 "expected 1, got 2")};
  }
};

TEST(AttnctlErrorTest, PrintsCodeMessageReasonAndFieldOnce) {
  RefusingHandler handler;
  const client::FakeServer server(&handler);
  const Outcome outcome = RunTool({"info", "--server=" + server.target()});
  EXPECT_EQ(outcome.exit_code, kCallFailed);
  EXPECT_EQ(outcome.err,
            "attnctl: INVALID_ARGUMENT: a.b: expected 1, got 2\n"
            "  reason: INVALID_FIELD (attnd)\n"
            "  field:  a.b\n"
            "  server: " +
                server.target() + "\n");
}

TEST(AttnctlErrorTest, AnAddressWithoutAPortIsThatOfAttnd) {
  // Only this test uses the address.
  const Outcome outcome = RunTool({"info", "--server=127.0.0.77"});
  EXPECT_EQ(outcome.exit_code, kUnavailable);
  EXPECT_THAT(outcome.err, HasSubstr("  server: 127.0.0.77:50051\n"));
}

TEST_F(AttnctlTest, BenchShowsProgressAndOneVerdict) {
  const Outcome outcome =
      RunHere({"bench", "--num-vectors=64", "--dimensions=32"});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("attnctl bench: naive\n"));
  EXPECT_THAT(outcome.err, Not(HasSubstr("\r")));
  EXPECT_EQ(outcome.out,
            "64 x 32: flash 2 ms, naive 8 ms: 4.00x faster, 75.0 % less "
            "memory (1.0 KiB, naive 4.0 KiB); 50.0 GFLOP/s = 50 % of FMA peak "
            "on scalar, 1 thread; worst error 0.0e+00; median of 3 runs\n");
  const Outcome terminal =
      RunTool({"bench", "--server=" + server_.target(), "--json"}, true);
  EXPECT_THAT(terminal.err, HasSubstr("\r\033[K"));
  EXPECT_THAT(terminal.err, HasSubstr("100 %"));
  EXPECT_EQ(terminal.json().at("speedup"), 4);
  EXPECT_EQ(terminal.json().at("repetitions"), 3);
  EXPECT_EQ(terminal.json().at("num_queries"), 4096);
  EXPECT_EQ(terminal.json().at("num_heads"), 1);
  EXPECT_EQ(terminal.json().at("dtype"), "f32");
}

TEST_F(AttnctlTest, EstimateAndInfoPrintTablesAndJson) {
  const Outcome table =
      RunHere({"estimate", "--seq-len=4096", "--concurrency=7"});
  EXPECT_EQ(table.exit_code, kOk);
  EXPECT_THAT(table.out, HasSubstr("4.0 KiB (4096)"));
  EXPECT_THAT(table.out, HasSubstr("peak, 7 at once"));
  EXPECT_THAT(table.out, HasSubstr("message_size"));
  EXPECT_EQ(RunHere({"estimate", "--seq-len=4096", "--json"})
                .json()
                .at("limiting_factor"),
            "message_size");

  const Outcome info = RunHere({"info"});
  EXPECT_EQ(info.exit_code, kOk);
  EXPECT_THAT(info.out, HasSubstr("9.8.7"));
  EXPECT_THAT(info.out, HasSubstr("3.0 GiB (3221225472)"));
  EXPECT_THAT(info.out, HasSubstr("stream, backward"));
  EXPECT_EQ(RunHere({"info", "--json"}).json().at("threads"), 5);
}

// A server that has ended ten more calls each time that it is asked.
class BusyHandler final : public client::FakeHandler {
 public:
  client::WireReply OnServerInfo(v1::GetServerInfoResponse* response) override {
    FakeHandler::OnServerInfo(response);
    const int64_t asked = ++asked_;
    v1::ServerLoad* load = response->mutable_load();
    load->mutable_uptime()->set_seconds(90'000 + asked);
    load->mutable_uptime()->set_nanos(500'000'000);
    load->set_in_flight(3);
    load->set_max_in_flight(64);
    load->set_reserved_bytes(int64_t{1} << 30);
    load->set_connections(2);
    load->set_max_connections(1000);
    load->set_busy_threads(5);
    v1::MethodLoad* method = load->add_methods();
    method->set_method("Attention");
    method->set_finished(10 * asked);
    method->set_failed(asked);
    method->mutable_queue_time()->set_seconds(9 * asked);
    method->mutable_compute_time()->set_seconds(18 * asked);
    method->mutable_total_time()->set_seconds(40 * asked);
    method->set_flops(50'000'000'000 * asked);
    return {};
  }

 private:
  std::atomic<int64_t> asked_ = 0;
};

TEST(AttnctlLoadTest, InfoShowsTheLoad) {
  BusyHandler handler;
  const client::FakeServer server(&handler);
  const Outcome info = RunTool({"info", "--server=" + server.target()});
  EXPECT_EQ(info.exit_code, kOk) << info.err;
  EXPECT_THAT(info.out, HasSubstr("up for             1 d 01:00:01\n"
                                  "requests now       3 of 64\n"
                                  "memory held now    1.0 GiB (1073741824)\n"
                                  "connections now    2 of 1000\n"));
  const auto load = RunTool({"info", "--json", "--server=" + server.target()})
                        .json()
                        .at("load");
  EXPECT_EQ(load, nlohmann::json::parse(R"({
      "uptime_ms": 90002500.0, "in_flight": 3, "max_in_flight": 64,
      "reserved_bytes": 1073741824, "connections": 2, "max_connections": 1000,
      "busy_threads": 5, "methods": [{
          "method": "Attention", "finished": 20, "failed": 2,
          "queue_time_ms": 18000.0, "compute_time_ms": 36000.0,
          "total_time_ms": 80000.0, "flops": 100000000000}]})"));
}

TEST(AttnctlLoadTest, TopTakesTwoSamplesUnlessItDrawsOnATerminal) {
  for (const std::vector<std::string>& flags :
       {std::vector<std::string>{"--once"}, {}}) {
    BusyHandler handler;
    const client::FakeServer server(&handler);
    std::vector<std::string> arguments = {"top", "--interval=0.1",
                                          "--server=" + server.target()};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome top = RunTool(arguments);
    EXPECT_EQ(top.exit_code, kOk) << top.err;
    EXPECT_THAT(top.out, HasSubstr("SERVING, up 1 d 01:00:02, , 5 threads\n"));
    EXPECT_THAT(top.out, HasSubstr("over the last 1.0 s, 9.00 calls waited"));
    EXPECT_THAT(top.out,
                HasSubstr("\nAttention              10.0     1.00     1000 "
                          "      2000     4000    50.0     20\n"));
    EXPECT_THAT(top.out, Not(HasSubstr("\x1b")));
  }
}

TEST(AttnctlLoadTest, TopPrintsOneJsonObject) {
  BusyHandler handler;
  client::FakeServer server(&handler);
  server.SetServing(false);
  const Outcome top = RunTool({"top", "--once", "--json", "--interval=0.1",
                               "--server=" + server.target()});
  EXPECT_EQ(top.exit_code, kOk) << top.err;
  EXPECT_EQ(top.json().at("server"), server.target());
  EXPECT_EQ(top.json().at("health"), "NOT_SERVING");
  EXPECT_EQ(top.json().at("rates").at("seconds"), 1);
  EXPECT_EQ(top.json().at("rates").at("all").at("finished_per_second"), 10);
  EXPECT_EQ(top.json().at("load").at("methods").at(0).at("finished"), 20);
}

TEST_F(AttnctlTest, HealthExitsWithZeroOnlyWhileServing) {
  EXPECT_EQ(RunHere({"health"}).exit_code, kOk);
  EXPECT_EQ(RunHere({"health", "--service=no.such.Service"}).exit_code,
            kUnavailable);
  server_.SetServing(false);
  const Outcome outcome = RunHere({"health"});
  EXPECT_EQ(outcome.exit_code, kUnavailable);
  EXPECT_EQ(outcome.out, "NOT_SERVING\n");
}

// gRPC would take the port modulo 65536, and ask this server.
TEST_F(AttnctlTest, APortThatDoesNotExistIsAnError) {
  const std::string target = server_.target();
  const size_t port = target.rfind(':') + 1;
  const std::string wrong = absl::StrCat(
      target.substr(0, port), std::stoi(target.substr(port)) + 65536);
  const Outcome outcome = RunTool({"health", "--server=" + wrong});
  EXPECT_EQ(outcome.exit_code, kUsage);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, HasSubstr("--server: expected host:port or "
                                     "unix:PATH, with a port from 1 to 65535, "
                                     "got " +
                                     wrong));
  ASSERT_EQ(setenv("ATTND_SERVER", wrong.c_str(), 1), 0);
  EXPECT_EQ(RunTool({"health"}).exit_code, kUsage);
  ASSERT_EQ(unsetenv("ATTND_SERVER"), 0);
}

TEST_F(AttnctlTest, EnvironmentNamesTheServerUnlessAFlagDoes) {
  ASSERT_EQ(setenv("ATTND_SERVER", server_.target().c_str(), 1), 0);
  EXPECT_EQ(RunTool({"health"}).exit_code, kOk);
  EXPECT_EQ(RunTool({"health", "--server=unix:" + Path("nobody")}).exit_code,
            kUnavailable);
  ASSERT_EQ(unsetenv("ATTND_SERVER"), 0);
}

}  // namespace
}  // namespace attnd::attnctl
