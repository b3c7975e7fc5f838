// Implements attnctl attention, self and cross, which read and write .npy
// files.
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/attnctl/answers.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/npy.h"
#include "client/attnctl/option_flags.h"

namespace attnd::attnctl {
namespace {

struct AttentionFlags {
  std::vector<FileFlag> inputs;  // as many as the method has tensors
  std::optional<client::DataType> dtype;
  std::optional<client::DataType> output_dtype;
  Answer output{.name = "output"};
  Answer lse{.name = "lse"};
  client::AttentionOptions options;
  TensorFlags tensors;
  AnswerReport report;
};

// Describes one of the three commands. `call` gets the tensors in the order of
// `flags`, which name their files.
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

ExitCode RunAttention(const Method& method, AttentionFlags& flags,
                      Session& session) {
  const ExitCode checked = CheckFiles({flags.output, flags.lse}, session);
  if (checked != kOk) return checked;
  std::vector<client::ConstTensor> tensors;
  for (const FileFlag& file : flags.inputs) {
    // A file of bool is read here, too, and refused by the server, which names
    // the field: a mask has a flag of its own.
    auto tensor = ReadNpy(file.path, {.to = flags.dtype});
    if (!tensor.ok()) return session.FileError(file.Error(tensor.status()));
    tensors.push_back(*std::move(tensor));
  }
  if (absl::Status status = flags.tensors.Load(flags.dtype, flags.options);
      !status.ok()) {
    return session.FileError(status);
  }
  std::vector<Answer> answers = {flags.output};
  // The last tensor is the values, or stands for them.
  answers[0].shape =
      client::OutputShape(tensors.front().shape, tensors.back().shape);
  answers[0].dtype = flags.output_dtype.value_or(tensors.front().data.type());
  if (!flags.lse.file.path.empty() || !flags.lse.expected.path.empty()) {
    answers.push_back(flags.lse);
    answers[1].shape =
        client::LseShape(tensors.front().shape, flags.options.layout);
  }
  for (Answer& answer : answers) {
    const absl::Status status = answer.Allocate();
    if (!status.ok()) return session.CallError(status);
  }
  const client::AttentionOutputs outputs{
      .output = answers[0].elements(),
      .lse = answers.size() > 1 ? std::optional(answers[1].elements())
                                : std::nullopt};

  const client::AttentionClient client = session.Connect();
  const absl::Time start = absl::Now();
  const auto reply = method.call(client, tensors, outputs, flags.options);
  flags.report.elapsed = absl::Now() - start;
  if (!reply.ok()) return session.CallError(reply.status());
  flags.report.stats = reply->stats;
  answers[0].shape = reply->output_shape;
  if (answers.size() > 1) answers[1].shape = reply->lse_shape;
  return Finish(answers, flags.report, session);
}

void AddMethod(CLI::App& app, const Method& method, Session& session) {
  CLI::App* command = app.add_subcommand(method.name, method.help);
  auto flags = std::make_shared<AttentionFlags>();
  flags->inputs.resize(method.flags.size());
  for (size_t i = 0; i < method.flags.size(); ++i) {
    flags->inputs[i]
        .Add(*command, method.flags[i], method.flag_help[i])
        ->required();
  }
  flags->output.file.Add(*command, "-o,--output",
                         "write the output to this file");
  flags->lse.file.Add(*command, "--lse",
                      "request the log-sum-exp of each row's scores, and write "
                      "it to this file");
  flags->output.expected.Add(
      *command, "--expected",
      "compare the output with this file, which holds floats of any type");
  flags->lse.expected.Add(
      *command, "--expected-lse",
      "request the log-sum-exp of each row's scores, and compare it with this "
      "file");
  AddReportFlags(*command, flags->report);
  AddTypeFlag(*command, "--dtype", flags->dtype,
              "round the tensors to this type before sending them; required "
              "for float64");
  AddTypeFlag(*command, "--output-dtype", flags->output_dtype,
              "type of the output; default: the type of the query");
  AddOptionFlags(*command, flags->options);
  flags->tensors.Add(*command);
  command->footer(absl::StrCat(
      "Files hold little-endian float32 ('<f4'), float16 ('<f2') or bfloat16\n"
      "('<V2', as NumPy saves ml_dtypes.bfloat16) in C order. Their rank is 4, "
      "3 or\n"
      "2: [batch, heads, seq, dim], the same without batch, or the same "
      "without\n"
      "batch and heads. Files of float64 ('<f8') need --dtype, to which "
      "attnctl\n"
      "rounds them; numbers that are too large for that type become "
      "infinities.\n"
      "Separate the numbers of a list with commas: --key-lengths=7,9.\n",
      kPipesHelp, method.footer));
  command->callback([method, flags, &session] {
    session.exit_code = RunAttention(method, *flags, session);
  });
}

}  // namespace

void AddAttentionCommands(CLI::App& app, Session& session) {
  AddMethod(app,
            {.name = "attention",
             .help = "Compute attention of .npy files: softmax(q k^T) v",
             .flags = {"-q,--query", "-k,--key", "-v,--value"},
             .flag_help = {"the query: [batch, q_heads, q_len, head_dim]",
                           "the key: [batch, kv_heads, kv_len, head_dim]",
                           "the value: [batch, kv_heads, kv_len, v_head_dim]"},
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
                       "--expected=o.npy --max-error=2e-6\n"
                       "  attnctl attention -q q.npy -k k.npy -v v.npy "
                       "-o o.npy --dtype=bf16 --window-left=1023 "
                       "--mask=m.npy\n"
                       "  attnctl attention -q <(zcat q.npy.gz) -k k.npy -v "
                       "v.npy -o /dev/stdout | gzip > o.npy.gz\n"},
            session);
  AddMethod(app,
            {.name = "self",
             .help = "Compute self-attention of .npy files: a sequence that "
                     "attends to itself",
             .flags = {"-s,--sequence"},
             .flag_help = {"the sequence, which is query, key and value: "
                           "[batch, heads, seq, dim]"},
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
             .help = "Compute cross-attention of .npy files: a sequence that "
                     "attends to another",
             .flags = {"-q,--queries", "-s,--kv-sequence"},
             .flag_help = {"the sequence that attends, which is the query: "
                           "[batch, q_heads, q_len, dim]",
                           "the sequence that it attends to, which is key and "
                           "value: [batch, kv_heads, kv_len, dim]"},
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
