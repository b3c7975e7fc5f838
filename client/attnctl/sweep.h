// The flags and the output that the sweeps of attnctl estimate and of attnctl
// bench share. A sweep repeats a command for several values of one of its
// sizes, which is the axis of the sweep.
#ifndef ATTND_CLIENT_ATTNCTL_SWEEP_H_
#define ATTND_CLIENT_ATTNCTL_SWEEP_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/attnctl/byte_file.h"
#include "client/attnctl/chart.h"
#include "client/attnctl/session.h"

namespace attnd::attnctl {

// A size of `Options` that a sweep can change. Its flag is "--" and the name.
template <typename Options>
struct SweepAxis {
  const char* name;
  int64_t Options::*size;
};

struct Sweep {
  std::string axis;                  // the name of the axis, such as "seq-len"
  std::vector<int64_t> values = {};  // at least one, in rising order
  bool doubles = true;  // whether each value is twice the one before

  // Returns the size that the sweep changes. `axes` must have its axis.
  template <typename Options, size_t kCount>
  int64_t Options::*SizeIn(const SweepAxis<Options> (&axes)[kCount]) const {
    for (const SweepAxis<Options>& known : axes) {
      if (axis == known.name) return known.size;
    }
    return nullptr;
  }
  // Returns the name of the axis as a field: "seq_len".
  std::string Field() const;
};

// Reads "AXIS=FIRST..LAST", whose values double as long as they are not above
// LAST, or "AXIS=FIRST..LAST+STEP", whose values grow by STEP.
// INVALID_ARGUMENT if the text is something else, if `axes` does not have the
// axis, or if there are more than 1000 values.
absl::StatusOr<Sweep> ParseSweep(absl::string_view text,
                                 const std::vector<std::string>& axes);

struct SweepFlags {
  std::optional<Sweep> sweep;
  bool csv = false;
  bool json = false;
  std::string svg_path;
};

// Adds --sweep for these axes, and --csv, --json and --svg. --json works
// without a sweep as well.
void AddSweepFlags(CLI::App& command, const std::vector<std::string>& axes,
                   SweepFlags& flags);

// The same for the axes in a table.
template <typename Options, size_t kCount>
void AddSweepFlags(CLI::App& command, const SweepAxis<Options> (&axes)[kCount],
                   SweepFlags& flags) {
  std::vector<std::string> names;
  for (const SweepAxis<Options>& axis : axes) names.emplace_back(axis.name);
  AddSweepFlags(command, names, flags);
}

// What a sweep prints.
struct SweepReport {
  std::string title;                                 // of the SVG file
  std::vector<std::string> columns = {};             // the heads of the table
  std::vector<std::vector<std::string>> table = {};  // one row for each value
  // The rows for --json and --csv. All have the same keys.
  std::vector<Json> rows = {};
  std::vector<Chart> charts = {};
};

// Prints a report as the flags ask for it.
class SweepOutput {
 public:
  // Opens the SVG file, if the flags name one, so that a long sweep does not
  // run in vain. `flags` and `session` must outlive the output.
  static absl::StatusOr<SweepOutput> Open(const SweepFlags& flags,
                                          Session& session);

  // Prints the report and writes the SVG file. Returns kOk or kFileError.
  ExitCode Print(const SweepReport& report);

 private:
  SweepOutput(const SweepFlags& flags, Session& session,
              std::optional<ByteFile> svg);

  const SweepFlags& flags_;
  Session& session_;
  std::optional<ByteFile> svg_;
};

// Returns the rows as CSV (RFC 4180) with a header. Leaves out objects. Empty
// if there are no rows.
std::string CsvOf(const std::vector<Json>& rows);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_SWEEP_H_
