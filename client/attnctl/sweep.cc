#include "client/attnctl/sweep.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "core/printable.h"

namespace attnd::attnctl {
namespace {

constexpr size_t kMaxValues = 1000;

absl::Status NotASweep(absl::string_view expected, absl::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("expected ", expected, ", got '", text, "'"));
}

// Reads a number of digits only. absl::SimpleAtoi alone would allow signs and
// spaces.
bool ReadSize(absl::string_view text, int64_t& size) {
  return text.find_first_not_of("0123456789") == absl::string_view::npos &&
         absl::SimpleAtoi(text, &size) && size > 0;
}

std::string CsvCell(const Json& value) {
  if (value.is_null()) return "";
  if (!value.is_string()) return value.dump();
  const std::string text = Printable(value.get<std::string>());
  if (text.find_first_of("\",") == std::string::npos) return text;
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\"", "\"\""}}), "\"");
}

std::string CsvLine(const std::vector<std::string>& cells) {
  return absl::StrCat(absl::StrJoin(cells, ","), "\r\n");
}

absl::Status SvgError(const absl::Status& status) {
  return {status.code(), absl::StrCat("--svg=", status.message())};
}

// Prints the rows with their cells aligned to the right.
void PrintTable(const SweepReport& report, Screen& screen) {
  std::vector<std::vector<std::string>> rows = {report.columns};
  rows.insert(rows.end(), report.table.begin(), report.table.end());
  std::vector<size_t> widths(report.columns.size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppend(&line, i > 0 ? "  " : "",
                      std::string(widths[i] - row[i].size(), ' '), row[i]);
    }
    screen.Print(line);
  }
}

}  // namespace

std::string Sweep::Field() const {
  return absl::StrReplaceAll(axis, {{"-", "_"}});
}

absl::StatusOr<Sweep> ParseSweep(absl::string_view text,
                                 const std::vector<std::string>& axes) {
  const std::pair<absl::string_view, absl::string_view> sides =
      absl::StrSplit(text, absl::MaxSplits('=', 1));
  Sweep sweep{.axis = std::string(sides.first)};
  if (std::find(axes.begin(), axes.end(), sweep.axis) == axes.end()) {
    return NotASweep(absl::StrCat("AXIS=FIRST..LAST with one of the axes ",
                                  absl::StrJoin(axes, ", ")),
                     text);
  }
  const std::pair<absl::string_view, absl::string_view> range =
      absl::StrSplit(sides.second, absl::MaxSplits("..", 1));
  const std::pair<absl::string_view, absl::string_view> end =
      absl::StrSplit(range.second, absl::MaxSplits('+', 1));
  sweep.doubles = !absl::StrContains(range.second, '+');
  int64_t first = 0;
  int64_t last = 0;
  int64_t step = 0;
  if (!ReadSize(range.first, first) || !ReadSize(end.first, last) ||
      !(sweep.doubles || ReadSize(end.second, step)) || first > last) {
    return NotASweep(absl::StrCat(sweep.axis,
                                  "=FIRST..LAST or =FIRST..LAST+STEP, with "
                                  "whole numbers above 0 and FIRST not above "
                                  "LAST"),
                     text);
  }
  for (int64_t value = first;;) {
    if (sweep.values.size() == kMaxValues) {
      return NotASweep(absl::StrCat("at most ", kMaxValues, " values"), text);
    }
    sweep.values.push_back(value);
    const int64_t growth = sweep.doubles ? value : step;
    if (value > last - growth) return sweep;
    value += growth;
  }
}

void AddSweepFlags(CLI::App& command, const std::vector<std::string>& axes,
                   SweepFlags& flags) {
  CLI::Option* const sweep =
      command
          .add_option_function<std::string>(
              "--sweep",
              [&flags, axes](const std::string& text) {
                absl::StatusOr<Sweep> parsed = ParseSweep(text, axes);
                if (!parsed.ok()) {
                  throw CLI::ValidationError(
                      "--sweep", std::string(parsed.status().message()));
                }
                flags.sweep = *std::move(parsed);
              },
              absl::StrCat(
                  "repeat this for several values of one size, which "
                  "double from FIRST to at most LAST, or grow by "
                  "STEP, and print a table and a plot. AXIS is one of ",
                  absl::StrJoin(axes, ", "),
                  ". It replaces the flag of that name"))
          ->type_name("AXIS=FIRST..LAST[+STEP]");
  CLI::Option* const csv =
      command.add_flag("--csv", flags.csv, "print the rows of a sweep as CSV")
          ->needs(sweep);
  command
      .add_flag("--json", flags.json,
                "print all numbers as JSON, and a sweep as a list of rows")
      ->excludes(csv);
  command
      .add_option("--svg", flags.svg_path,
                  "also write the plot of a sweep to this file, as SVG")
      ->type_name("FILE")
      ->needs(sweep);
}

SweepOutput::SweepOutput(const SweepFlags& flags, Session& session,
                         std::optional<ByteFile> svg)
    : flags_(flags), session_(session), svg_(std::move(svg)) {}

absl::StatusOr<SweepOutput> SweepOutput::Open(const SweepFlags& flags,
                                              Session& session) {
  std::optional<ByteFile> svg;
  if (!flags.svg_path.empty()) {
    absl::StatusOr<ByteFile> file = ByteFile::OpenToWrite(flags.svg_path);
    if (!file.ok()) return SvgError(file.status());
    svg.emplace(*std::move(file));
    if (IsStandardOutput(flags.svg_path)) session.screen.PrintResultsToErr();
  }
  return SweepOutput(flags, session, std::move(svg));
}

ExitCode SweepOutput::Print(const SweepReport& report) {
  Screen& screen = session_.screen;
  if (flags_.json) {
    screen.PrintJson(report.rows);
  } else if (flags_.csv) {
    screen.PrintCsv(CsvOf(report.rows));
  } else if (!report.table.empty()) {
    PrintTable(report, screen);
    for (const Chart& chart : report.charts) {
      screen.Print("");
      for (const std::string& line : DrawText(chart)) screen.Print(line);
    }
  }
  if (!svg_) return kOk;
  const std::string svg = DrawSvg(report.title, report.charts);
  absl::Status written = svg_->Write(std::as_bytes(std::span(svg)));
  written.Update(svg_->Close());
  svg_.reset();
  return written.ok() ? kOk : session_.FileError(SvgError(written));
}

std::string CsvOf(const std::vector<Json>& rows) {
  std::string csv;
  for (const Json& row : rows) {
    std::vector<std::string> heads;
    std::vector<std::string> cells;
    for (const auto& [key, value] : row.items()) {
      if (value.is_object()) continue;
      heads.push_back(key);
      cells.push_back(CsvCell(value));
    }
    if (csv.empty()) csv = CsvLine(heads);
    csv += CsvLine(cells);
  }
  return csv;
}

}  // namespace attnd::attnctl
