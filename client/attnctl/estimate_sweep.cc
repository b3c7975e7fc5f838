#include "client/attnctl/estimate_sweep.h"

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cost/cost_limits.h"

namespace attnd::attnctl {
namespace {

// Adds one estimate to the report.
void AddTo(SweepReport& report, const Sweep& sweep, int64_t value,
           const client::MemoryEstimate& estimate, const Estimator& estimator) {
  std::vector<std::string> cells = {
      absl::StrCat(value), FormatBytesShort(estimate.flash_bytes),
      FormatBytesShort(estimate.naive_bytes),
      FormatBytesShort(estimate.peak_bytes),
      FormatBytesShort(estimate.required_message_bytes)};
  if (estimator.has_limits) {
    cells.emplace_back(estimate.fits ? "yes" : "no");
    cells.push_back(estimate.limiting_factor);
  }
  report.table.push_back(std::move(cells));
  Json row = {{sweep.Field(), value}};
  row.update(estimator.to_json(estimate));
  report.rows.push_back(std::move(row));

  const auto add_point = [&](size_t series, int64_t bytes) {
    report.charts[0].series[series].points.push_back(
        {static_cast<double>(value), static_cast<double>(bytes)});
  };
  if (report.charts[0].series.size() == 1) {
    add_point(0, estimate.peak_bytes);
  } else {
    add_point(0, estimate.flash_bytes);
    add_point(1, estimate.naive_bytes);
  }
}

SweepReport EmptyReport(const Sweep& sweep, const Estimator& estimator) {
  SweepReport report{
      .title = "Memory of attention",
      .columns = {sweep.Field(), "flash", "naive", "peak of all", "message"}};
  if (estimator.has_limits) {
    report.columns.insert(report.columns.end(), {"fits", "limiting factor"});
  }
  Chart chart{.title = "Memory of one request, without message buffers",
              .x_label = sweep.Field(),
              .x = {.is_log = sweep.doubles},
              .y = {.unit = ChartUnit::kBytes, .is_log = sweep.doubles}};
  if (sweep.axis == "concurrency") {
    // The memory of one request does not depend on the others.
    chart.title = "Memory of all requests";
    chart.series = {{.name = "peak"}};
  } else {
    chart.series = {{.name = "flash"}, {.name = "naive"}};
  }
  report.charts.push_back(std::move(chart));
  return report;
}

}  // namespace

ExitCode RunEstimateSweep(const client::MemoryEstimateOptions& options,
                          const SweepFlags& flags, const Estimator& estimator,
                          Session& session) {
  auto output = SweepOutput::Open(flags, session);
  if (!output.ok()) return session.FileError(output.status());
  const Sweep& sweep = *flags.sweep;
  SweepReport report = EmptyReport(sweep, estimator);
  client::MemoryEstimateOptions at_value = options;
  absl::Status failure;
  std::optional<int64_t> uncomputable;  // the first such value
  for (const int64_t value : sweep.values) {
    at_value.*sweep.SizeIn(kEstimateAxes) = value;
    const auto estimate = estimator.estimate(at_value);
    if (!estimate.ok()) {
      failure = estimate.status();
      break;
    }
    AddTo(report, sweep, value, *estimate, estimator);
    if (!uncomputable && estimate->limiting_factor == kInt64RangeLimit &&
        !estimate->fits) {
      uncomputable = value;
    }
  }
  const ExitCode printed = output->Print(report);
  if (uncomputable && !estimator.has_limits) {
    session.screen.PrintError(absl::StrCat(
        "attnctl estimate: from ", sweep.Field(), " = ", *uncomputable,
        ", the problem fits no server, because it "
        "is too large to be computed"));
  }
  if (failure.ok()) return printed;
  session.screen.PrintError(
      absl::StrCat("attnctl estimate: the sweep ended at ", sweep.Field(),
                   " = ", at_value.*sweep.SizeIn(kEstimateAxes), ":"));
  return estimator.report_error(failure);
}

}  // namespace attnd::attnctl
