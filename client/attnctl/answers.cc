#include "client/attnctl/answers.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/attnctl/comparison.h"
#include "client/attnctl/elements.h"
#include "client/attnctl/npy.h"

namespace attnd::attnctl {
namespace {

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

}  // namespace

absl::Status Answer::Allocate(int64_t max_message_bytes) {
  const auto count = client::ElementCount(shape);
  if (!count || *count > max_message_bytes / client::SizeOf(dtype)) {
    return client::ReasonError(
        absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
        absl::StrCat("response: expected at most ", max_message_bytes,
                     " bytes (--max-message-bytes), got an answer of shape ",
                     FormatShape(shape)));
  }
  bytes.resize(static_cast<size_t>(*count * client::SizeOf(dtype)));
  return absl::OkStatus();
}

std::span<float> Answer::floats() {
  return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
}

void AddReportFlags(CLI::App& command, AnswerReport& report) {
  report.max_error = 1e-5;
  command
      .add_option("--max-error", report.max_error,
                  "the largest absolute difference that agrees")
      ->capture_default_str();
  command.add_flag("--json", report.json, "print JSON");
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
    if (!answer.path.empty()) {
      const absl::Status written =
          WriteNpy(answer.path, answer.dtype, answer.shape, answer.bytes);
      if (!written.ok()) return session.FileError(written);
      lines.push_back(absl::StrCat(answer.name, " ", FormatShape(answer.shape),
                                   " -> ", answer.path));
    }
    if (answer.expected_path.empty()) continue;
    const auto expected = ReadNpyAsDouble(answer.expected_path);
    if (!expected.ok()) return session.FileError(expected.status());
    const auto comparison =
        Compare(ToFloats(answer.dtype, answer.bytes), answer.shape,
                expected->values, expected->shape);
    if (!comparison.ok()) {
      session.err << "attnctl: " << answer.expected_path << ": "
                  << comparison.status().message() << "\n";
      return kDisagrees;
    }
    const bool agrees = comparison->Within(report.max_error);
    if (!agrees) exit_code = kDisagrees;
    lines.push_back(Sentence(answer, *comparison, report.max_error));
    json["comparisons"].push_back({{"what", answer.name},
                                   {"expected", answer.expected_path},
                                   {"worst_error", comparison->worst_error},
                                   {"worst_index", comparison->worst_index},
                                   {"max_error", report.max_error},
                                   {"agrees", agrees}});
  }
  if (report.json) {
    PrintJson(json, session);
    return exit_code;
  }
  session.out << absl::StrFormat(
      "%s in %.3g ms, of which %.3g ms computing (%s, %d thread%s)\n",
      FormatShape(shape), absl::ToDoubleMilliseconds(report.elapsed),
      absl::ToDoubleMilliseconds(stats.compute_time), stats.isa, stats.threads,
      stats.threads == 1 ? "" : "s");
  for (const std::string& line : lines) session.out << line << "\n";
  return exit_code;
}

}  // namespace attnd::attnctl
