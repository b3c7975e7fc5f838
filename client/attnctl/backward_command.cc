// Implements attnctl backward, which computes the gradients of attention, and
// reads and writes .npy files.
#include <array>
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

struct BackwardFlags {
  // query, key, value, output, lse, grad_output
  std::array<FileFlag, 6> inputs;
  // The gradients of query, key and value.
  std::vector<Answer> answers = {
      {.name = "grad_query"}, {.name = "grad_key"}, {.name = "grad_value"}};
  std::optional<client::DataType> dtype;
  client::AttentionOptions options;
  TensorFlags tensors;
  AnswerReport report;
};

ExitCode RunBackward(BackwardFlags& flags, Session& session) {
  const ExitCode checked = CheckFiles(flags.answers, session);
  if (checked != kOk) return checked;
  std::array<client::ConstTensor, 6> tensors;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const FileFlag& file = flags.inputs[i];
    auto tensor = ReadNpy(file.path, {.to = flags.dtype});
    if (!tensor.ok()) return session.FileError(file.Error(tensor.status()));
    tensors[i] = *std::move(tensor);
  }
  if (absl::Status status = flags.tensors.Load(flags.dtype, flags.options);
      !status.ok()) {
    return session.FileError(status);
  }
  std::vector<Answer>& answers = flags.answers;
  for (size_t i = 0; i < answers.size(); ++i) {
    answers[i].shape = tensors[i].shape;
    absl::Status status = answers[i].Allocate();
    // The client cannot stream the answer of this method if it is large.
    status.Update(answers[i].CheckFitsMessage(session.max_message_bytes));
    if (!status.ok()) return session.CallError(status);
  }
  const client::AttentionClient client = session.Connect();
  const absl::Time start = absl::Now();
  const auto stats = client.AttentionBackward(
      {tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], tensors[5]},
      {answers[0].elements().floats(), answers[1].elements().floats(),
       answers[2].elements().floats()},
      flags.options);
  flags.report.elapsed = absl::Now() - start;
  if (!stats.ok()) return session.CallError(stats.status());
  flags.report.stats = *stats;
  return Finish(answers, flags.report, session);
}

}  // namespace

void AddBackwardCommand(CLI::App& app, Session& session) {
  CLI::App* command = app.add_subcommand(
      "backward", "Compute the gradients of attention from .npy files");
  auto flags = std::make_shared<BackwardFlags>();
  static constexpr std::pair<const char*, const char*> kInputs[] = {
      {"-q,--query", "the query that attention was called with"},
      {"-k,--key", "the key that attention was called with"},
      {"-v,--value", "the value that attention was called with"},
      {"--output", "the output that attention returned"},
      {"--lse", "the lse that attention returned"},
      {"--grad-output",
       "the gradient of the loss with respect to that output, of the same "
       "shape"}};
  for (size_t i = 0; i < flags->inputs.size(); ++i) {
    const auto& [names, help] = kInputs[i];
    flags->inputs[i].Add(*command, names, help)->required();
  }
  static constexpr const char* kTensors[] = {"query", "key", "value"};
  for (size_t i = 0; i < flags->answers.size(); ++i) {
    Answer& answer = flags->answers[i];
    const std::string gradient = absl::StrCat("grad-", kTensors[i]);
    answer.file.Add(*command, absl::StrCat("--", gradient),
                    absl::StrCat("write the gradient of the ", kTensors[i],
                                 " to this file"));
    answer.expected.Add(
        *command, absl::StrCat("--expected-", gradient),
        "compare that gradient with this file, which holds floats of any type");
  }
  AddReportFlags(*command, flags->report);
  AddTypeFlag(*command, "--dtype", flags->dtype,
              "round the tensors to this type before sending them; required "
              "unless they are float32")
      ->check(CLI::IsMember({"f32"}));
  AddOptionFlags(*command, flags->options);
  flags->tensors.Add(*command);
  command->footer(absl::StrCat(
      "Files hold little-endian float32 in C order. With --dtype=f32, they "
      "can\n"
      "also hold other floats. Pass the same options as in the call of "
      "attention.\n",
      kPipesHelp,
      "Example:\n"
      "  attnctl attention -q q.npy -k k.npy -v v.npy -o o.npy --lse=l.npy\n"
      "  attnctl backward -q q.npy -k k.npy -v v.npy --output=o.npy "
      "--lse=l.npy \\\n"
      "      --grad-output=do.npy --grad-query=dq.npy --grad-key=dk.npy "
      "--grad-value=dv.npy\n"));
  command->callback(
      [flags, &session] { session.exit_code = RunBackward(*flags, session); });
}

}  // namespace attnd::attnctl
