// Draws line charts: as text for a terminal, and as an SVG file. The result
// depends only on the arguments.
#ifndef ATTND_CLIENT_ATTNCTL_CHART_H_
#define ATTND_CLIENT_ATTNCTL_CHART_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace attnd::attnctl {

// What the numbers of an axis are.
enum class ChartUnit { kCount, kBytes, kMilliseconds };

struct ChartAxis {
  ChartUnit unit = ChartUnit::kCount;
  // Whether equal distances are equal factors. A point whose number is not
  // above 0 cannot be drawn then, and is left out.
  bool is_log = true;
};

struct ChartPoint {
  double x = 0;
  double y = 0;
};

struct ChartSeries {
  std::string name;
  std::vector<ChartPoint> points = {};  // ordered by x
};

struct Chart {
  std::string title;    // what the y axis shows
  std::string x_label;  // what the x axis shows
  ChartAxis x = {};
  ChartAxis y = {};
  std::vector<ChartSeries> series = {};
};

// Returns the lines of a drawing of ASCII characters without colours. `width`
// counts the characters of a line, including the labels of the y axis, and
// `height` the lines between the title and the x axis. Each series has a
// character of its own.
std::vector<std::string> DrawText(const Chart& chart, int width = 72,
                                  int height = 16);

// Returns an SVG document with the charts one below the other. It needs no
// other files, has a text for screen readers, and adapts its colours to a light
// or dark theme. Series also differ in the shape of their marks.
std::string DrawSvg(absl::string_view title, const std::vector<Chart>& charts);

// Formats a number with its unit, in few characters: "4Ki", "1.5 GiB", "20 ms".
std::string FormatWithUnit(double number, ChartUnit unit);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_CHART_H_
