// attnctl attention, self and cross: .npy files in, a .npy file out, and the
// comparison with what was expected.
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/comparison.h"
#include "client/attnctl/npy.h"

namespace attnd::attnctl {
namespace {

struct AttentionFlags {
  std::vector<std::string> inputs;  // as many as the method has tensors
  std::string output;
  std::string lse;
  std::string expected;
  std::string expected_lse;
  double max_error = 1e-5;
  client::AttentionOptions options;
  bool json = false;
};

// One of the three methods on tensors that were read in the order of `flags`.
struct Method {
  const char* name;
  const char* help;
  std::vector<const char*> flags;
  std::vector<const char*> flag_help;
  std::function<absl::StatusOr<client::AttentionReply>(
      const client::AttentionClient&, const std::vector<client::ConstTensor>&,
      const client::AttentionOutputs&, const client::AttentionOptions&)>
      call;
  const char* footer;
};

// An answer's array: where it goes, and what it is held against.
struct Answer {
  const char* name;
  std::string path;
  std::string expected_path;
  std::vector<float> values;
  std::vector<int64_t> shape;
};

// Room for an answer of `shape`. Refuses what the client could not receive
// anyway, before it allocates anything.
absl::Status Allocate(const std::vector<int64_t>& shape,
                      int64_t max_message_bytes, std::vector<float>& values) {
  const auto count = client::ElementCount(shape);
  if (!count || *count > max_message_bytes / int64_t{sizeof(float)}) {
    return client::ReasonError(
        absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
        absl::StrCat("response: expected at most ", max_message_bytes,
                     " bytes (--max-message-bytes), got an answer of shape ",
                     FormatShape(shape)));
  }
  values.resize(static_cast<size_t>(*count));
  return absl::OkStatus();
}

std::string Sentence(const Answer& answer, const Comparison& comparison,
                     double max_error) {
  return absl::StrFormat(
      "%s vs %s: worst error %.3g%s, allowed %.3g: %s", answer.name,
      answer.expected_path, comparison.worst_error,
      comparison.worst_index.empty()
          ? ""
          : absl::StrCat(" at ", FormatShape(comparison.worst_index)),
      max_error, comparison.Within(max_error) ? "agrees" : "DISAGREES");
}

// Writes and compares what `answers` ask for, then reports.
ExitCode Finish(const AttentionFlags& flags, const std::vector<Answer>& answers,
                const client::AttentionReply& reply, absl::Duration elapsed,
                Session& session) {
  ExitCode exit_code = kOk;
  Json json = {{"output_shape", reply.output_shape},
               {"call_ms", absl::ToDoubleMilliseconds(elapsed)},
               {"stats", StatsJson(reply.stats)},
               {"comparisons", Json::array()}};
  std::vector<std::string> lines;
  for (const Answer& answer : answers) {
    if (!answer.path.empty()) {
      const absl::Status written =
          WriteNpyFloat32(answer.path, answer.shape, answer.values);
      if (!written.ok()) return session.FileError(written);
      lines.push_back(absl::StrCat(answer.name, " ", FormatShape(answer.shape),
                                   " -> ", answer.path));
    }
    if (answer.expected_path.empty()) continue;
    const auto expected = ReadNpyAsDouble(answer.expected_path);
    if (!expected.ok()) return session.FileError(expected.status());
    const auto comparison =
        Compare(answer.values, answer.shape, expected->values, expected->shape);
    if (!comparison.ok()) {
      session.err << "attnctl: " << answer.expected_path << ": "
                  << comparison.status().message() << "\n";
      return kDisagrees;
    }
    const bool agrees = comparison->Within(flags.max_error);
    if (!agrees) exit_code = kDisagrees;
    lines.push_back(Sentence(answer, *comparison, flags.max_error));
    json["comparisons"].push_back({{"what", answer.name},
                                   {"expected", answer.expected_path},
                                   {"worst_error", comparison->worst_error},
                                   {"worst_index", comparison->worst_index},
                                   {"max_error", flags.max_error},
                                   {"agrees", agrees}});
  }
  if (flags.json) {
    PrintJson(json, session);
    return exit_code;
  }
  session.out << absl::StrFormat(
      "%s in %.3g ms, of which %.3g ms computing (%s, %d thread%s)\n",
      FormatShape(reply.output_shape), absl::ToDoubleMilliseconds(elapsed),
      absl::ToDoubleMilliseconds(reply.stats.compute_time), reply.stats.isa,
      reply.stats.threads, reply.stats.threads == 1 ? "" : "s");
  for (const std::string& line : lines) session.out << line << "\n";
  return exit_code;
}

ExitCode RunAttention(const Method& method, const AttentionFlags& flags,
                      Session& session) {
  std::vector<NpyArray<float>> arrays;
  for (const std::string& path : flags.inputs) {
    auto array = ReadNpyFloat32(path);
    if (!array.ok()) return session.FileError(array.status());
    arrays.push_back(*std::move(array));
  }
  std::vector<client::ConstTensor> tensors;
  tensors.reserve(arrays.size());
  for (const auto& array : arrays) {
    tensors.push_back({array.values, array.shape});
  }
  // The last tensor is the values, or stands for them.
  std::vector<Answer> answers(1);
  answers[0] = {
      "output",
      flags.output,
      flags.expected,
      {},
      client::OutputShape(tensors.front().shape, tensors.back().shape)};
  if (!flags.lse.empty() || !flags.expected_lse.empty()) {
    answers.push_back({"lse",
                       flags.lse,
                       flags.expected_lse,
                       {},
                       client::LseShape(tensors.front().shape)});
  }
  for (Answer& answer : answers) {
    const absl::Status status =
        Allocate(answer.shape, session.max_message_bytes, answer.values);
    if (!status.ok()) return session.CallError(status);
  }
  client::AttentionOutputs outputs{.output = answers[0].values};
  if (answers.size() > 1) outputs.lse = answers[1].values;

  const client::AttentionClient client = session.Connect();
  const absl::Time start = absl::Now();
  const auto reply = method.call(client, tensors, outputs, flags.options);
  const absl::Duration elapsed = absl::Now() - start;
  if (!reply.ok()) return session.CallError(reply.status());
  answers[0].shape = reply->output_shape;
  if (answers.size() > 1) answers[1].shape = reply->lse_shape;
  return Finish(flags, answers, *reply, elapsed, session);
}

void AddMethod(CLI::App& app, const Method& method, Session& session) {
  CLI::App* command = app.add_subcommand(method.name, method.help);
  auto flags = std::make_shared<AttentionFlags>();
  flags->inputs.resize(method.flags.size());
  for (size_t i = 0; i < method.flags.size(); ++i) {
    command->add_option(method.flags[i], flags->inputs[i], method.flag_help[i])
        ->required()
        ->type_name("FILE.npy");
  }
  const auto file = [&](const char* name, std::string& path, const char* help) {
    command->add_option(name, path, help)->type_name("FILE.npy");
  };
  file("-o,--output", flags->output, "where the output goes");
  file("--lse", flags->lse, "ask for the log of each row's sum, written here");
  file("--expected", flags->expected,
       "compare the output with this, float32 or float64");
  file("--expected-lse", flags->expected_lse, "compare lse with this");
  command
      ->add_option("--max-error", flags->max_error,
                   "the largest absolute difference that agrees")
      ->capture_default_str();
  command->add_option("--scale", flags->options.scale,
                      "of the scores; default 1 / sqrt(head_dim)");
  command->add_option("--temperature", flags->options.temperature,
                      "divides the scores; default 1");
  command->add_option("--block-size", flags->options.block_size,
                      "keys in a tile; default automatic");
  AddCausalFlag(*command, flags->options.causal);
  command->add_flag("--json", flags->json, "print JSON");
  command->footer(absl::StrCat(
      "Files hold little-endian float32 in C order, of rank 4, 3 or 2:\n"
      "[batch, heads, seq, dim], without batch, or without both.\n",
      method.footer));
  command->callback([method, flags, &session] {
    session.exit_code = RunAttention(method, *flags, session);
  });
}

}  // namespace

void AddAttentionCommands(CLI::App& app, Session& session) {
  AddMethod(app,
            {.name = "attention",
             .help = "softmax(q k^T) v on .npy files",
             .flags = {"-q,--query", "-k,--key", "-v,--value"},
             .flag_help = {"[batch, q_heads, q_len, head_dim]",
                           "[batch, kv_heads, kv_len, head_dim]",
                           "[batch, kv_heads, kv_len, v_head_dim]"},
             .call =
                 [](const auto& client, const auto& tensors,
                    const auto& outputs, const auto& options) {
                   return client.Attention({tensors[0], tensors[1], tensors[2]},
                                           outputs, options);
                 },
             .footer = "Examples:\n"
                       "  attnctl attention -q q.npy -k k.npy -v v.npy "
                       "-o o.npy --causal=bottom-right\n"
                       "  attnctl attention -q q.npy -k k.npy -v v.npy "
                       "--expected=o.npy --max-error=2e-6\n"},
            session);
  AddMethod(app,
            {.name = "self",
             .help = "One sequence that attends to itself, on .npy files",
             .flags = {"-s,--sequence"},
             .flag_help = {"[batch, heads, seq, dim]"},
             .call =
                 [](const auto& client, const auto& tensors,
                    const auto& outputs, const auto& options) {
                   return client.SelfAttention(tensors[0], outputs, options);
                 },
             .footer = "Example:\n"
                       "  attnctl self -s x.npy -o o.npy --lse=lse.npy\n"},
            session);
  AddMethod(app,
            {.name = "cross",
             .help = "One sequence that attends to another, on .npy files",
             .flags = {"-q,--queries", "-s,--kv-sequence"},
             .flag_help = {"[batch, q_heads, q_len, dim]",
                           "[batch, kv_heads, kv_len, dim]"},
             .call =
                 [](const auto& client, const auto& tensors,
                    const auto& outputs, const auto& options) {
                   return client.CrossAttention(tensors[0], tensors[1], outputs,
                                                options);
                 },
             .footer = "Example:\n"
                       "  attnctl cross -q text.npy -s image.npy -o o.npy\n"},
            session);
}

}  // namespace attnd::attnctl
