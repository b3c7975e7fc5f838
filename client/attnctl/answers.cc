#include "client/attnctl/answers.h"

#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/field_error.h"
#include "client/attnctl/byte_file.h"
#include "client/attnctl/comparison.h"
#include "client/attnctl/elements.h"
#include "client/attnctl/npy.h"
#include "wire/reasons.h"

namespace attnd::attnctl {
namespace {

// The result of a comparison, as a sentence and as JSON for --json.
struct Judgement {
  bool agrees = false;
  std::string sentence;
  Json json;
};

Judgement Judge(const Answer& answer, const NpyDoubles& expected,
                double max_error) {
  const auto comparison =
      Compare(ToFloats(answer.dtype, answer.bytes()), answer.shape,
              expected.values, expected.shape);
  Judgement verdict{
      .agrees = comparison.ok() && comparison->Within(max_error),
      .sentence = absl::StrCat(answer.name, " vs ", answer.expected.path, ": "),
      .json = {{"what", answer.name}, {"expected", answer.expected.path}}};
  if (!comparison.ok()) {
    absl::StrAppend(&verdict.sentence, comparison.status().message());
    verdict.json["error"] = std::string(comparison.status().message());
  } else {
    absl::StrAppendFormat(
        &verdict.sentence, "worst error %.3g%s, allowed %.3g",
        comparison->worst_error,
        comparison->worst_index.empty()
            ? ""
            : absl::StrCat(" at ", ShapeText(comparison->worst_index)),
        max_error);
    verdict.json["worst_error"] = comparison->worst_error;
    verdict.json["worst_index"] = comparison->worst_index;
  }
  verdict.sentence += verdict.agrees ? ": agrees" : ": DISAGREES";
  verdict.json["max_error"] = max_error;
  verdict.json["agrees"] = verdict.agrees;
  return verdict;
}

}  // namespace

absl::Status Answer::Allocate() {
  const auto count = client::ElementCount(shape);
  int64_t bytes = 0;
  if (count && !__builtin_mul_overflow(*count, client::SizeOf(dtype), &bytes)) {
    memory.reset(new (std::nothrow) std::byte[static_cast<size_t>(bytes)]);
  }
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(
        name, ": not enough memory for an answer of shape ", ShapeText(shape)));
  }
  size_bytes = static_cast<size_t>(bytes);
  return absl::OkStatus();
}

absl::Status Answer::CheckFitsMessage(int64_t max_message_bytes) const {
  if (size_bytes <= static_cast<uint64_t>(max_message_bytes)) {
    return absl::OkStatus();
  }
  return client::ReasonError(
      absl::StatusCode::kResourceExhausted, kMessageTooLarge,
      absl::StrCat("response: expected at most ", max_message_bytes,
                   " bytes (--max-message-bytes), got an answer of shape ",
                   ShapeText(shape)));
}

void AddReportFlags(CLI::App& command, AnswerReport& report) {
  report.max_error = 1e-5;
  AddNumberFlag(command, "--max-error", report.max_error,
                "the largest absolute difference at which answers agree")
      ->default_str("1e-05");
  command.add_flag("--json", report.json, "print JSON");
}

ExitCode CheckFiles(const std::vector<Answer>& answers, Session& session) {
  for (size_t i = 0; i < answers.size(); ++i) {
    const FileFlag& file = answers[i].file;
    if (file.path.empty()) continue;
    const auto clashes = [&](const FileFlag& other) {
      if (other.path.empty() || !IsSameFile(other.path, file.path)) {
        return false;
      }
      session.screen.PrintError(
          absl::StrCat("attnctl: ", file.name, ": expected a file other than ",
                       other.name, "=", other.path, ", got ", file.path));
      return true;
    };
    for (size_t j = 0; j < answers.size(); ++j) {
      // Answers are written before they are compared. An answer that overwrites
      // the file with the expected one would be compared with itself.
      if ((j < i && clashes(answers[j].file)) || clashes(answers[j].expected)) {
        return kUsage;
      }
    }
    if (IsStandardOutput(file.path)) session.screen.PrintResultsToErr();
  }
  return kOk;
}

ExitCode Finish(const std::vector<Answer>& answers, const AnswerReport& report,
                Session& session) {
  const client::ExecutionStats& stats = report.stats;
  const std::vector<int64_t>& shape = answers.front().shape;
  ExitCode exit_code = kOk;
  Json json = {{absl::StrCat(answers.front().name, "_shape"), shape},
               {"call_ms", absl::ToDoubleMilliseconds(report.elapsed)},
               {"stats", StatsJson(stats)},
               {"comparisons", Json::array()}};
  std::vector<std::string> lines;
  for (const Answer& answer : answers) {
    const FileFlag& file = answer.file;
    if (file.path.empty()) continue;
    const absl::Status written =
        WriteNpy(file.path, answer.dtype, answer.shape, answer.bytes());
    if (!written.ok()) return session.FileError(file.Error(written));
    lines.push_back(absl::StrCat(answer.name, " ", ShapeText(answer.shape),
                                 " -> ", file.path));
  }
  for (const Answer& answer : answers) {
    if (answer.expected.path.empty()) continue;
    const auto expected = ReadNpyAsDouble(answer.expected.path);
    if (!expected.ok()) {
      return session.FileError(answer.expected.Error(expected.status()));
    }
    Judgement verdict = Judge(answer, *expected, report.max_error);
    if (!verdict.agrees) exit_code = kDisagrees;
    lines.push_back(std::move(verdict.sentence));
    json["comparisons"].push_back(std::move(verdict.json));
  }
  if (report.json) {
    session.screen.PrintJson(json);
    return exit_code;
  }
  session.screen.Print(absl::StrFormat(
      "%s in %.3g ms, including %.3g ms of computation (%s, %d thread%s)",
      ShapeText(shape), absl::ToDoubleMilliseconds(report.elapsed),
      absl::ToDoubleMilliseconds(stats.compute_time), stats.isa, stats.threads,
      stats.threads == 1 ? "" : "s"));
  for (const std::string& line : lines) session.screen.Print(line);
  return exit_code;
}

}  // namespace attnd::attnctl
