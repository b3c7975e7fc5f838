// attnctl backward: the gradients of attention, .npy files in and out.
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/attnctl/answers.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/npy.h"
#include "client/attnctl/option_flags.h"

namespace attnd::attnctl {
namespace {

struct BackwardFlags {
  // query, key, value, output, lse, grad_output
  std::array<std::string, 6> inputs;
  // Gradients of the first three.
  std::vector<Answer> answers = {
      {.name = "grad_query", .path = {}, .expected_path = {}},
      {.name = "grad_key", .path = {}, .expected_path = {}},
      {.name = "grad_value", .path = {}, .expected_path = {}}};
  client::AttentionOptions options;
  TensorFlags tensors;
  AnswerReport report;
};

ExitCode RunBackward(BackwardFlags& flags, Session& session) {
  std::array<NpyTensor, 6> arrays;
  std::array<client::ConstTensor, 6> tensors;
  for (size_t i = 0; i < arrays.size(); ++i) {
    auto array = ReadNpy(flags.inputs[i]);
    if (!array.ok()) return session.FileError(array.status());
    arrays[i] = *std::move(array);
    tensors[i] = {{arrays[i].dtype, arrays[i].bytes}, arrays[i].shape};
  }
  if (absl::Status status = flags.tensors.Load(flags.options); !status.ok()) {
    return session.FileError(status);
  }
  std::vector<Answer>& answers = flags.answers;
  for (size_t i = 0; i < answers.size(); ++i) {
    answers[i].shape = arrays[i].shape;
    absl::Status status = answers[i].Allocate();
    // The one method whose answer is not streamed where it is large.
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
      "backward", "The gradients of attention, on .npy files");
  auto flags = std::make_shared<BackwardFlags>();
  const auto file = [&](const std::string& name, std::string& path,
                        const char* help) {
    return command->add_option(name, path, help)->type_name("FILE.npy");
  };
  auto& inputs = flags->inputs;
  file("-q,--query", inputs[0], "as attention got it")->required();
  file("-k,--key", inputs[1], "likewise")->required();
  file("-v,--value", inputs[2], "likewise")->required();
  file("--output", inputs[3], "what attention answered")->required();
  file("--lse", inputs[4], "likewise")->required();
  file("--grad-output", inputs[5], "the gradient of output, of its shape")
      ->required();
  const char* const names[] = {"grad-query", "grad-key", "grad-value"};
  for (size_t i = 0; i < flags->answers.size(); ++i) {
    file(std::string("--") + names[i], flags->answers[i].path,
         "where this gradient goes");
    file(std::string("--expected-") + names[i], flags->answers[i].expected_path,
         "compare it with this, floats of any type");
  }
  AddReportFlags(*command, flags->report);
  AddOptionFlags(*command, flags->options);
  flags->tensors.Add(*command);
  command->footer(
      "Files hold little-endian float32 in C order; options are those that\n"
      "attention was called with.\n"
      "Example:\n"
      "  attnctl attention -q q.npy -k k.npy -v v.npy -o o.npy --lse=l.npy\n"
      "  attnctl backward -q q.npy -k k.npy -v v.npy --output=o.npy "
      "--lse=l.npy \\\n"
      "      --grad-output=do.npy --grad-query=dq.npy --grad-key=dk.npy "
      "--grad-value=dv.npy\n");
  command->callback(
      [flags, &session] { session.exit_code = RunBackward(*flags, session); });
}

}  // namespace attnd::attnctl
