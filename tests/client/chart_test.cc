#include "client/attnctl/chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"

namespace attnd::attnctl {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kMebibyte = 1 << 20;

Chart MemoryChart() {
  return {.title = "Memory",
          .x_label = "tokens",
          .y = {.unit = ChartUnit::kBytes},
          .series = {{"flash", {{1024, kMebibyte}, {2048, 2 * kMebibyte}}},
                     {"naive", {{1024, kMebibyte}, {2048, 16 * kMebibyte}}}}};
}

std::string Text(const Chart& chart, int width = 32, int height = 5) {
  return absl::StrJoin(DrawText(chart, width, height), "\n");
}

TEST(ChartTextTest, DrawsSeriesOverLogarithmicAxes) {
  EXPECT_EQ(Text(MemoryChart(), 32, 9),
            "Memory\n"
            "16 MiB +                      oo\n"
            "       |                   ooo\n"
            "       |                ooo\n"
            "       |             ooo\n"
            " 4 MiB +           oo\n"
            "       |        ooo\n"
            "       |     ooo          ******\n"
            "       |  ooo ************\n"
            " 1 MiB +##****\n"
            "       ++----------------------+\n"
            "        1Ki                  2Ki\n"
            "                 tokens\n"
            "        * flash   o naive   # several");
}

TEST(ChartTextTest, DrawsLinearAxesFromZero) {
  const Chart chart = {
      .title = "Memory",
      .x_label = "tokens",
      .x = {.is_log = false},
      .y = {.unit = ChartUnit::kBytes, .is_log = false},
      .series = {
          {"flash", {{1000, kMebibyte}, {2000, 3 * kMebibyte}, {3000, 0}}}}};
  EXPECT_EQ(Text(chart, 40, 7),
            "Memory\n"
            "4 MiB +\n"
            "      |              ****\n"
            "      |        ******    ***\n"
            "2 MiB +   *****             ***\n"
            "      |***                     ****\n"
            "      |                            ***\n"
            "  0 B +                               **\n"
            "      ++-------+-------+-------+-------+\n"
            "       1000  1500    2000    2500   3000\n"
            "                    tokens\n"
            "       * flash");
}

TEST(ChartTextTest, DrawsOnePoint) {
  EXPECT_EQ(Text({.title = "One", .x_label = "n", .series = {{"a", {{8, 5}}}}}),
            "One\n"
            "16 +\n"
            "   |\n"
            "   |              *\n"
            " 4 +\n"
            "   |\n"
            "   ++-------------+------------+\n"
            "    4             8           16\n"
            "                  n\n"
            "    * a");
}

TEST(ChartTextTest, DrawsEqualValues) {
  EXPECT_EQ(Text({.title = "Equal",
                  .x_label = "n",
                  .y = {.unit = ChartUnit::kMilliseconds},
                  .series = {{"a", {{1, 10}, {2, 10}, {4, 10}}}}}),
            "Equal\n"
            "100 ms +\n"
            "       |\n"
            "       |************************\n"
            "       |\n"
            "  1 ms +\n"
            "       ++-----------+----------+\n"
            "        1           2          4\n"
            "                    n\n"
            "        * a");
  EXPECT_EQ(Text({.title = "Zeros",
                  .x_label = "n",
                  .x = {.is_log = false},
                  .y = {.is_log = false},
                  .series = {{"a", {{0, 0}}}}}),
            "Zeros\n"
            "1 +\n"
            "  |\n"
            "  |\n"
            "  |\n"
            "0 +              *\n"
            "  ++-------------+-------------+\n"
            "   -1            0             1\n"
            "                 n\n"
            "   * a");
}

TEST(ChartTextTest, LeavesOutWhatALogarithmCannotShow) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Chart chart = {
      .title = "Holes",
      .x_label = "n",
      .series = {{"a", {{0, 2}, {1, 0}, {2, 4}, {4, kInfinity}, {8, 1}}},
                 {"b", {{2, -1}}}}};
  EXPECT_EQ(Text(chart),
            "Holes\n"
            "4 +****\n"
            "  |    *******\n"
            "  |           *******\n"
            "  |                  *******\n"
            "1 +                         ****\n"
            "  ++-------------+-------------+\n"
            "   2             4             8\n"
            "                 n\n"
            "   * a   o b");
}

TEST(ChartTextTest, DrawsHugeValues) {
  constexpr double kMost = 9223372036854775807.0;
  EXPECT_EQ(Text({.title = "Huge",
                  .x_label = "n",
                  .y = {.unit = ChartUnit::kBytes},
                  .series = {{"a", {{1, 1}, {kMost, kMost}}}}},
                 48, 6),
            "Huge\n"
            "      |                                    *****\n"
            "1 PiB +                            ********\n"
            "      |                    ********\n"
            "      |            ********\n"
            "      |    ********\n"
            "  1 B +****\n"
            "      ++------------+-----------+------------+--\n"
            "       1           1Mi         1Ti          1Ei\n"
            "                           n\n"
            "       * a");
  constexpr double kLargest = std::numeric_limits<double>::max();
  for (const bool is_log : {true, false}) {
    const std::vector<std::string> lines =
        DrawText({.title = "Largest",
                  .x_label = "n",
                  .x = {.is_log = is_log},
                  .y = {.is_log = is_log},
                  .series = {{"a", {{1, 1}, {kLargest / 4, kLargest / 4}}}}});
    EXPECT_EQ(lines.size(), 21);
  }
}

TEST(ChartTextTest, SaysThatThereIsNothingToDraw) {
  EXPECT_EQ(Text({.title = "Empty", .x_label = "n"}),
            "Empty\n  (there is nothing to draw)");
  EXPECT_EQ(
      Text({.title = "Zero", .x_label = "n", .series = {{"a", {{1, 0}}}}}),
      "Zero\n  (there is nothing to draw)");
}

TEST(ChartTextTest, StaysWithinItsWidth) {
  for (const int width : {0, 10, 20, 33, 72, 200}) {
    for (const int height : {1, 2, 5, 40}) {
      const std::vector<std::string> lines =
          DrawText(MemoryChart(), width, height);
      // A title, an axis, its labels, its name, and a legend.
      EXPECT_EQ(lines.size(), height + 5);
      if (width < 72) continue;
      for (const std::string& line : lines) EXPECT_LE(line.size(), width);
    }
  }
}

// Returns what is not well-formed in an XML document, or an empty text.
std::string XmlFault(const std::string& xml) {
  static const std::regex kToken(
      R"re(<\?xml [^<>]*\?>|<(/?)([a-z]+)((?: [A-Za-z0-9:-]+="[^"<>&]*")*)(/?)>|([^<&>]|&(?:amp|lt|gt|quot|apos);)+)re",
      std::regex::optimize);
  std::vector<std::string> open;
  std::smatch match;
  auto at = xml.cbegin();
  while (at != xml.cend()) {
    if (!std::regex_search(at, xml.cend(), match, kToken,
                           std::regex_constants::match_continuous)) {
      return "not XML: " + std::string(at, xml.cend()).substr(0, 60);
    }
    at += match.length();
    if (!match[2].matched) continue;
    if (match[1].length() == 0) {
      if (match[4].length() == 0) open.push_back(match[2]);
    } else if (open.empty() || open.back() != match[2]) {
      return "closed, but not open: " + match[2].str();
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : "not closed: " + open.back();
}

TEST(ChartSvgTest, IsADocumentWithTextForEveryPoint) {
  const std::string svg = DrawSvg("An estimate", {MemoryChart()});
  EXPECT_EQ(XmlFault(svg), "");
  EXPECT_THAT(svg, HasSubstr("<title id=\"title\">An estimate</title>"));
  EXPECT_THAT(svg, HasSubstr("<desc id=\"desc\">Memory against tokens. flash: "
                             "1 MiB at 1Ki, 2 MiB at 2Ki. naive: 1 MiB at 1Ki, "
                             "16 MiB at 2Ki.</desc>"));
  EXPECT_THAT(svg, HasSubstr("<title>naive, 2Ki: 16 MiB</title>"));
  EXPECT_THAT(svg, HasSubstr("<polyline class=\"line s0\" "
                             "points=\"90.0,348.0 696.0,285.0\"/>"));
  EXPECT_THAT(svg, HasSubstr("<polyline class=\"line s1\" "
                             "points=\"90.0,348.0 696.0,96.0\"/>"));
  EXPECT_THAT(svg, HasSubstr("<text class=\"y\" x=\"82.0\" y=\"100.0\">16 MiB"
                             "</text>"));
  // It refers to nothing outside.
  EXPECT_THAT(svg, Not(HasSubstr("href")));
  EXPECT_THAT(svg, Not(HasSubstr("url(")));
  EXPECT_EQ(svg, DrawSvg("An estimate", {MemoryChart()}));
}

TEST(ChartSvgTest, EscapesText) {
  Chart chart = MemoryChart();
  chart.title = "a < b & \"c\" > 'd'\x1b\n";
  chart.series[0].name = "<script>";
  const std::string svg = DrawSvg("]]><x>", {chart});
  EXPECT_EQ(XmlFault(svg), "");
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; &quot;c&quot; &gt; &apos;d&apos;"
                             "\\x1b\\x0a"));
  EXPECT_THAT(svg, Not(HasSubstr("<script>")));
}

TEST(ChartSvgTest, DrawsAnyNumberOfChartsAndSeries) {
  EXPECT_EQ(XmlFault(DrawSvg("None", {})), "");
  Chart many = MemoryChart();
  many.series.resize(9, {"more", {{1024, 5}}});
  const std::string svg =
      DrawSvg("Many", {many, {.title = "Empty", .x_label = "n"}});
  EXPECT_EQ(XmlFault(svg), "");
  EXPECT_THAT(svg, HasSubstr("height=\"760\""));
  EXPECT_THAT(svg, HasSubstr("There is nothing to draw."));
}

TEST(ChartUnitTest, FormatsNumbersBriefly) {
  using enum ChartUnit;
  const struct {
    double number;
    ChartUnit unit;
    const char* expected;
  } cases[] = {{0, kCount, "0"},
               {1000, kCount, "1000"},
               {1024, kCount, "1Ki"},
               {6144, kCount, "6Ki"},
               {1025, kCount, "1025"},
               {1048576, kCount, "1Mi"},
               {100000000, kCount, "1e+08"},
               {1000000, kCount, "1000000"},
               {0, kBytes, "0 B"},
               {1023, kBytes, "1023 B"},
               {1536, kBytes, "1.5 KiB"},
               {1610612736, kBytes, "1.5 GiB"},
               {9223372036854775807.0, kBytes, "8 EiB"},
               {0, kMilliseconds, "0 s"},
               {0.00025, kMilliseconds, "250 ns"},
               {0.25, kMilliseconds, "250 us"},
               {38.2506, kMilliseconds, "38.25 ms"},
               {1000, kMilliseconds, "1 s"},
               {90000, kMilliseconds, "90 s"}};
  for (const auto& [number, unit, expected] : cases) {
    EXPECT_EQ(FormatWithUnit(number, unit), expected);
  }
}

}  // namespace
}  // namespace attnd::attnctl
