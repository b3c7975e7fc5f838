#include "client/attnctl/chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "core/printable.h"

namespace attnd::attnctl {
namespace {

// One axis as it is drawn. Numbers have a position, which is their logarithm on
// a logarithmic axis, so that the largest numbers do not overflow.
class Scale {
 public:
  // Covers all `numbers`. There must be at least one number.
  // `is_round` makes the axis begin and end at round numbers, and include 0 if
  // it is linear.
  Scale(const ChartAxis& axis, const std::vector<double>& numbers,
        int max_ticks, bool is_round)
      : axis_(axis) {
    const auto [low, high] =
        std::minmax_element(numbers.begin(), numbers.end());
    low_ = Position(*low);
    high_ = Position(*high);
    if (is_round && !axis.is_log) {
      low_ = std::min(low_, 0.0);
      high_ = std::max(high_, 0.0);
    }
    if (low_ == high_) {
      if (axis.is_log || !is_round) low_ -= 1;
      high_ += 1;
    }
    const double step = Step(max_ticks);
    if (is_round) {
      const double part = axis.is_log ? 1 : step;
      low_ = std::floor(low_ / part) * part;
      high_ = std::ceil(high_ / part) * part;
    }
    // The small part of a step makes up for rounding.
    const int64_t first = std::llround(std::ceil(low_ / step - 1e-9));
    const int64_t last = std::llround(std::floor(high_ / step + 1e-9));
    for (int64_t i = first; i <= last; ++i) {
      ticks_.push_back(static_cast<double>(i) * step);
    }
    if (ticks_.size() < 2) ticks_ = {low_, high_};
  }

  // Returns where a number is on the axis, from 0 to 1.
  double Part(double number) const { return PartAt(Position(number)); }

  // Where the ticks are on the axis, and their labels.
  std::vector<std::pair<double, std::string>> Ticks() const {
    std::vector<std::pair<double, std::string>> ticks;
    ticks.reserve(ticks_.size());
    for (const double at : ticks_) {
      ticks.emplace_back(
          PartAt(at),
          FormatWithUnit(axis_.is_log ? std::pow(Base(), at) : at, axis_.unit));
    }
    return ticks;
  }

 private:
  double Base() const {
    return axis_.unit == ChartUnit::kMilliseconds ? 10 : 2;
  }
  double Position(double number) const {
    return axis_.is_log ? std::log2(number) / std::log2(Base()) : number;
  }
  double PartAt(double position) const {
    return (position - low_) / (high_ - low_);
  }

  // Returns a round distance between ticks, so that there are about `max_ticks`
  // of them. On a logarithmic axis, it is a whole exponent.
  double Step(int max_ticks) const {
    const double least = (high_ - low_) / max_ticks;
    if (!axis_.is_log && axis_.unit == ChartUnit::kBytes) {
      return std::exp2(std::ceil(std::log2(least)));
    }
    double power = std::pow(10, std::floor(std::log10(least)));
    if (axis_.is_log || axis_.unit == ChartUnit::kCount) {
      power = std::max(power, 1.0);
    }
    for (const double factor : {1, 2, 5}) {
      if (factor * power >= least) return factor * power;
    }
    return 10 * power;
  }

  const ChartAxis axis_;
  double low_ = 0;
  double high_ = 0;
  std::vector<double> ticks_;
};

bool CanDraw(double number, const ChartAxis& axis) {
  return std::isfinite(number) && (!axis.is_log || number > 0);
}

// Returns the series without the points that cannot be drawn.
std::vector<ChartSeries> Drawable(const Chart& chart) {
  std::vector<ChartSeries> drawable = chart.series;
  for (ChartSeries& series : drawable) {
    std::erase_if(series.points, [&chart](const ChartPoint& point) {
      return !CanDraw(point.x, chart.x) || !CanDraw(point.y, chart.y);
    });
  }
  return drawable;
}

std::vector<double> Numbers(const std::vector<ChartSeries>& all,
                            double ChartPoint::*coordinate) {
  std::vector<double> numbers;
  for (const ChartSeries& series : all) {
    for (const ChartPoint& point : series.points) {
      numbers.push_back(point.*coordinate);
    }
  }
  return numbers;
}

int Cell(double part, int cells) {
  return static_cast<int>(std::lround(part * (cells - 1)));
}

// The characters of the series. Cells that several series share get kShared.
constexpr absl::string_view kMarks = "*o+x%@";
constexpr char kShared = '#';

char MarkOf(size_t series) { return kMarks[series % kMarks.size()]; }

// The cells of a chart, without its axes.
class Canvas {
 public:
  Canvas(int width, int height)
      : rows_(static_cast<size_t>(height),
              std::string(static_cast<size_t>(width), ' ')) {}

  // Row 0 is at the bottom.
  void Set(int column, int row, char mark) {
    char& cell = rows_[rows_.size() - 1 - static_cast<size_t>(row)]
                      [static_cast<size_t>(column)];
    if (cell != ' ' && cell != mark) {
      mark = kShared;
      shared_ = true;
    }
    cell = mark;
  }

  void Line(std::pair<int, int> from, std::pair<int, int> to, char mark) {
    const int columns = to.first - from.first;
    const int rows = to.second - from.second;
    const int steps = std::max({std::abs(columns), std::abs(rows), 1});
    for (int i = 0; i <= steps; ++i) {
      const double part = static_cast<double>(i) / steps;
      Set(from.first + static_cast<int>(std::lround(part * columns)),
          from.second + static_cast<int>(std::lround(part * rows)), mark);
    }
  }

  const std::vector<std::string>& rows() const { return rows_; }
  bool shared() const { return shared_; }

 private:
  std::vector<std::string> rows_;
  bool shared_ = false;
};

// Returns a line with the labels centred below their columns. Leaves out a
// label that would touch the one before.
std::string LabelLine(const std::vector<std::pair<int, std::string>>& labels,
                      int width) {
  std::string line;
  for (const auto& [column, label] : labels) {
    const auto size = static_cast<int>(label.size());
    const auto begin = static_cast<size_t>(
        std::clamp(column - size / 2, 0, std::max(0, width - size)));
    if (!line.empty() && begin < line.size() + 2) continue;
    line.resize(begin, ' ');
    line += label;
  }
  return line;
}

std::string Legend(const std::vector<ChartSeries>& all, bool shared) {
  std::string legend;
  for (size_t i = 0; i < all.size(); ++i) {
    absl::StrAppend(&legend, i > 0 ? "   " : "", std::string(1, MarkOf(i)), " ",
                    all[i].name);
  }
  if (shared) absl::StrAppend(&legend, "   # several");
  return legend;
}

}  // namespace

std::string FormatWithUnit(double number, ChartUnit unit) {
  const auto scaled = [&number](double step,
                                std::initializer_list<const char*> units) {
    const auto* it = units.begin();
    for (; std::abs(number) >= step && it + 1 != units.end(); ++it) {
      number /= step;
    }
    return absl::StrFormat("%.4g %s", number, *it);
  };
  switch (unit) {
    case ChartUnit::kBytes:
      return scaled(1024, {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"});
    case ChartUnit::kMilliseconds:
      if (std::abs(number) >= 1000 || number == 0) {
        return absl::StrFormat("%.4g s", number / 1000);
      }
      number *= 1e6;  // to nanoseconds
      return scaled(1000, {"ns", "us", "ms"});
    case ChartUnit::kCount:
      break;
  }
  if (std::abs(number) < 1024 || std::fmod(number, 1024) != 0) {
    return absl::StrFormat("%.7g", number);
  }
  const std::string text =
      scaled(1024, {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"});
  return absl::StrReplaceAll(text, {{" ", ""}});
}

std::vector<std::string> DrawText(const Chart& chart, int width, int height) {
  const std::vector<ChartSeries> all = Drawable(chart);
  const std::vector<double> xs = Numbers(all, &ChartPoint::x);
  if (xs.empty()) return {chart.title, "  (there is nothing to draw)"};
  constexpr int kRowsPerTick = 3;
  constexpr int kColumnsPerTick = 8;
  const Scale y(chart.y, Numbers(all, &ChartPoint::y),
                std::max(1, height / kRowsPerTick), /*is_round=*/true);

  std::vector<std::string> y_labels(static_cast<size_t>(height));
  size_t label_width = 0;
  for (const auto& [part, label] : y.Ticks()) {
    y_labels[static_cast<size_t>(height - 1 - Cell(part, height))] = label;
    label_width = std::max(label_width, label.size());
  }
  const int columns =
      std::max(2, width - static_cast<int>(label_width) - 2);  // " |"
  const Scale x(chart.x, xs, std::max(1, columns / kColumnsPerTick),
                /*is_round=*/false);

  Canvas canvas(columns, height);
  for (size_t i = 0; i < all.size(); ++i) {
    std::pair<int, int> before;
    for (size_t j = 0; j < all[i].points.size(); ++j) {
      const ChartPoint& point = all[i].points[j];
      const std::pair<int, int> cell = {Cell(x.Part(point.x), columns),
                                        Cell(y.Part(point.y), height)};
      canvas.Line(j > 0 ? before : cell, cell, MarkOf(i));
      before = cell;
    }
  }

  const std::string indent(label_width + 2, ' ');
  std::vector<std::string> lines = {chart.title};
  for (size_t row = 0; row < y_labels.size(); ++row) {
    const std::string& label = y_labels[row];
    lines.push_back(absl::StrCat(std::string(label_width - label.size(), ' '),
                                 label, label.empty() ? " |" : " +",
                                 canvas.rows()[row]));
  }
  std::string axis(static_cast<size_t>(columns), '-');
  std::vector<std::pair<int, std::string>> x_labels;
  for (const auto& [part, label] : x.Ticks()) {
    x_labels.emplace_back(Cell(part, columns), label);
    axis[static_cast<size_t>(x_labels.back().first)] = '+';
  }
  lines.push_back(absl::StrCat(std::string(label_width, ' '), " +", axis));
  lines.push_back(absl::StrCat(indent, LabelLine(x_labels, columns)));
  lines.push_back(
      absl::StrCat(indent, LabelLine({{columns / 2, chart.x_label}}, columns)));
  lines.push_back(absl::StrCat(indent, Legend(all, canvas.shared())));
  for (std::string& line : lines) line.erase(line.find_last_not_of(' ') + 1);
  return lines;
}

namespace {

// Sizes in an SVG document, in its own units, which are CSS pixels at 100 %.
constexpr int kSvgWidth = 720;
constexpr int kHeadHeight = 40;    // the title of the document
constexpr int kChartHeight = 360;  // one chart with its axes and legend
constexpr int kLeft = 90;
constexpr int kRight = 24;
constexpr int kTop = 56;     // title and legend of a chart
constexpr int kBottom = 52;  // labels of the x axis
constexpr int kPlotWidth = kSvgWidth - kLeft - kRight;
constexpr int kPlotHeight = kChartHeight - kTop - kBottom;

constexpr char kStyle[] =
    "  <style>\n"
    "    .paper { fill: #ffffff }\n"
    "    text { fill: #1b1b1b; font: 13px sans-serif }\n"
    "    .head { font-size: 17px; font-weight: bold }\n"
    "    .title { font-weight: bold }\n"
    "    .x { text-anchor: middle }\n"
    "    .y { text-anchor: end }\n"
    "    .grid { stroke: #d0d0d0 }\n"
    "    .line { fill: none; stroke-width: 2 }\n"
    "    .s0 { stroke: #0060a0 } .s1 { stroke: #b04000 }\n"
    "    .s2 { stroke: #00704c } .s3 { stroke: #8a3d78 }\n"
    "    .mark { fill: #ffffff; stroke-width: 2 }\n"
    "    @media (prefers-color-scheme: dark) {\n"
    "      .paper, .mark { fill: #1b1b1b }\n"
    "      text { fill: #f0f0f0 }\n"
    "      .grid { stroke: #484848 }\n"
    "      .s0 { stroke: #66b8f0 } .s1 { stroke: #f0a060 }\n"
    "      .s2 { stroke: #50c8a0 } .s3 { stroke: #e0a0d0 }\n"
    "    }\n"
    "  </style>\n";

std::string XmlText(absl::string_view text) {
  return absl::StrReplaceAll(Printable(text), {{"&", "&amp;"},
                                               {"<", "&lt;"},
                                               {">", "&gt;"},
                                               {"\"", "&quot;"},
                                               {"'", "&apos;"}});
}

// Each series has one of these shapes and colours.
constexpr size_t kStyles = 4;

std::string SvgMark(size_t series, double x, double y,
                    absl::string_view tooltip) {
  // Paths around (0, 0): a circle, a square, a triangle and a diamond.
  static constexpr std::array<const char*, kStyles> kPaths = {
      "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", "M-4 -4h8v8h-8z", "M0 -5l5 9h-10z",
      "M0 -5l5 5l-5 5l-5 -5z"};
  const size_t style = series % kStyles;
  return absl::StrFormat(
      "    <path class=\"mark s%d\" transform=\"translate(%.1f %.1f)\" "
      "d=\"%s\">%s</path>\n",
      style, x, y, kPaths[style],
      tooltip.empty() ? ""
                      : absl::StrCat("<title>", XmlText(tooltip), "</title>"));
}

std::string SvgText(absl::string_view style, double x, double y,
                    absl::string_view text) {
  return absl::StrFormat(
      "    <text class=\"%s\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", style, x, y,
      XmlText(text));
}

std::string SvgLine(double x1, double y1, double x2, double y2) {
  return absl::StrFormat(
      "    <line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" "
      "y2=\"%.1f\"/>\n",
      x1, y1, x2, y2);
}

std::string SvgChart(const Chart& chart, int top) {
  std::string svg = SvgText("title", kLeft, top + 18, chart.title);
  const std::vector<ChartSeries> all = Drawable(chart);
  const std::vector<double> xs = Numbers(all, &ChartPoint::x);
  if (xs.empty()) {
    return svg +
           SvgText("note", kLeft, top + kTop, "There is nothing to draw.");
  }
  const Scale x(chart.x, xs, /*max_ticks=*/10, /*is_round=*/false);
  const Scale y(chart.y, Numbers(all, &ChartPoint::y), /*max_ticks=*/8,
                /*is_round=*/true);
  const auto x_at = [](double part) { return kLeft + part * kPlotWidth; };
  const auto y_at = [top](double part) {
    return top + kTop + (1 - part) * kPlotHeight;
  };
  for (const auto& [part, label] : x.Ticks()) {
    svg += SvgLine(x_at(part), y_at(0), x_at(part), y_at(1));
    svg += SvgText("x", x_at(part), y_at(0) + 18, label);
  }
  for (const auto& [part, label] : y.Ticks()) {
    svg += SvgLine(x_at(0), y_at(part), x_at(1), y_at(part));
    svg += SvgText("y", x_at(0) - 8, y_at(part) + 4, label);
  }
  svg += SvgText("x", x_at(0.5), y_at(0) + 40, chart.x_label);
  constexpr double kLegendStep = double{kPlotWidth} / 4;
  for (size_t i = 0; i < all.size(); ++i) {
    const double legend_x = kLeft + 6 + kLegendStep * static_cast<double>(i);
    svg += SvgMark(i, legend_x, top + 37, "");
    svg += SvgText("note", legend_x + 12, top + 41, all[i].name);
    std::string line;
    std::string marks;
    for (const ChartPoint& point : all[i].points) {
      const double at_x = x_at(x.Part(point.x));
      const double at_y = y_at(y.Part(point.y));
      absl::StrAppendFormat(&line, "%s%.1f,%.1f", line.empty() ? "" : " ", at_x,
                            at_y);
      marks += SvgMark(
          i, at_x, at_y,
          absl::StrCat(all[i].name, ", ", FormatWithUnit(point.x, chart.x.unit),
                       ": ", FormatWithUnit(point.y, chart.y.unit)));
    }
    absl::StrAppendFormat(&svg,
                          "    <polyline class=\"line s%d\" points=\"%s\"/>\n",
                          i % kStyles, line);
    svg += marks;
  }
  return svg;
}

// Returns what a screen reader says about a chart.
std::string Description(const Chart& chart) {
  std::string text = absl::StrCat(chart.title, " against ", chart.x_label, ".");
  for (const ChartSeries& series : chart.series) {
    absl::StrAppend(&text, " ", series.name, ":");
    for (const ChartPoint& point : series.points) {
      absl::StrAppend(&text, &point == series.points.data() ? " " : ", ",
                      FormatWithUnit(point.y, chart.y.unit), " at ",
                      FormatWithUnit(point.x, chart.x.unit));
    }
    absl::StrAppend(&text, series.points.empty() ? " no points." : ".");
  }
  return text;
}

}  // namespace

std::string DrawSvg(absl::string_view title, const std::vector<Chart>& charts) {
  const int height =
      kHeadHeight + kChartHeight * static_cast<int>(charts.size());
  std::string svg = absl::StrFormat(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
      "viewBox=\"0 0 %d %d\" role=\"img\" aria-labelledby=\"title desc\">\n"
      "  <title id=\"title\">%s</title>\n"
      "  <desc id=\"desc\">",
      kSvgWidth, height, kSvgWidth, height, XmlText(title));
  for (const Chart& chart : charts) {
    absl::StrAppend(&svg, &chart == charts.data() ? "" : " ",
                    XmlText(Description(chart)));
  }
  absl::StrAppend(&svg, "</desc>\n", kStyle);
  absl::StrAppendFormat(
      &svg, "  <rect class=\"paper\" width=\"%d\" height=\"%d\"/>\n", kSvgWidth,
      height);
  svg += SvgText("head", kLeft, 26, title);
  int top = kHeadHeight;
  for (const Chart& chart : charts) {
    absl::StrAppend(&svg, "  <g>\n", SvgChart(chart, top), "  </g>\n");
    top += kChartHeight;
  }
  svg += "</svg>\n";
  return svg;
}

}  // namespace attnd::attnctl
