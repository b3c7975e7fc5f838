#include "client/attnctl/sweep.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_cat.h"
#include "client/attnctl/option_flags.h"

namespace attnd::attnctl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(SweepTest, ValuesDoubleOrGrowByAStep) {
  const std::vector<std::string> axes = {"seq-len", "batch"};
  const auto values = [&axes](absl::string_view text) {
    const auto sweep = ParseSweep(text, axes);
    EXPECT_TRUE(sweep.ok()) << text << ": " << sweep.status();
    return sweep.ok() ? sweep->values : std::vector<int64_t>();
  };
  EXPECT_THAT(values("batch=1..8"), ElementsAre(1, 2, 4, 8));
  EXPECT_THAT(values("batch=3..20"), ElementsAre(3, 6, 12));
  EXPECT_THAT(values("batch=7..7"), ElementsAre(7));
  EXPECT_THAT(values("batch=2..9+3"), ElementsAre(2, 5, 8));
  EXPECT_THAT(values("batch=1..2+9223372036854775807"), ElementsAre(1));
  const auto most = values("seq-len=1..9223372036854775807");
  ASSERT_EQ(most.size(), 63);
  EXPECT_EQ(most.back(), int64_t{1} << 62);
  EXPECT_EQ(values("seq-len=1..1000+1").size(), 1000);
  const auto sweep = ParseSweep("seq-len=1..8+1", axes);
  ASSERT_TRUE(sweep.ok());
  EXPECT_FALSE(sweep->doubles);
  EXPECT_EQ(sweep->axis, "seq-len");
  EXPECT_EQ(sweep->Field(), "seq_len");
}

TEST(SweepTest, RefusesWhatIsNoSweep) {
  for (const char* text : {"",
                           "seq-len",
                           "seq-len=",
                           "seq-len=8",
                           "seq-len=8..",
                           "seq-len=..8",
                           "seq-len=0..8",
                           "seq-len=-1..8",
                           "seq-len=8..4",
                           "seq-len=1..8+",
                           "seq-len=1..8+0",
                           "seq-len=1..8+x",
                           "seq-len= 1..8",
                           "seq-len=1..+8",
                           "seq-len=1..8..9",
                           "seq-len=1..99999999999999999999",
                           "seq-len=1.5..8",
                           "length=1..8",
                           "seq_len=1..8",
                           "seq-len=1..1001+1"}) {
    const auto sweep = ParseSweep(text, {"seq-len"});
    EXPECT_EQ(sweep.status().code(), absl::StatusCode::kInvalidArgument)
        << text;
    EXPECT_THAT(sweep.status().message(),
                HasSubstr(absl::StrCat(", got '", text, "'")));
  }
}

TEST(SweepTest, WritesCsvWithAHeader) {
  EXPECT_EQ(CsvOf({}), "");
  const Json row = {{"n", 9223372036854775807},   {"ratio", 0.25},
                    {"missing", nullptr},         {"fits", true},
                    {"plain", "memory budget"},   {"quoted", "a,\"b\"\n"},
                    {"nested", {{"left", "out"}}}};
  EXPECT_EQ(CsvOf({row, row}),
            "n,ratio,missing,fits,plain,quoted\r\n"
            "9223372036854775807,0.25,,true,memory budget,"
            "\"a,\"\"b\"\"\\x0a\"\r\n"
            "9223372036854775807,0.25,,true,memory budget,"
            "\"a,\"\"b\"\"\\x0a\"\r\n");
}

TEST(BytesFlagTest, ReadsBytesInEveryUnit) {
  const struct {
    const char* text;
    int64_t bytes;
  } cases[] = {{"0", 0},
               {"1048576", 1 << 20},
               {"010", 10},
               {"8GiB", int64_t{8} << 30},
               {"8 GiB", int64_t{8} << 30},
               {"8gib", int64_t{8} << 30},
               {"8Gi", int64_t{8} << 30},
               {"1.5KiB", 1536},
               {"512MiB", 512 << 20},
               {"2TiB", int64_t{2} << 40},
               {"3B", 3},
               {"3KB", 3000},
               {"3MB", 3000000},
               {"0.5GB", 500000000},
               {"3TB", 3000000000000},
               {"1.9B", 1},
               {"9007199254740993", 9007199254740993},
               {"9223372036854775807", std::numeric_limits<int64_t>::max()},
               {"8388607TiB", int64_t{8388607} << 40}};
  for (const auto& [text, bytes] : cases) {
    const auto parsed = ParseBytes(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status();
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(BytesFlagTest, RefusesWhatIsNoNumberOfBytes) {
  for (const char* text :
       {"", "GiB", "-1", "+1", "1e3", "0x10", ".", "1..5", "1.2.3MB", "8G",
        "8M", "8 apples", "8GiBs", "nan", "inf", " 8", "8 8"}) {
    const auto parsed = ParseBytes(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument)
        << text;
    EXPECT_THAT(parsed.status().message(), HasSubstr("such as 8GiB"));
  }
  for (const char* text : {"9223372036854775808", "8388608TiB", "8388608.0TiB",
                           "99999999999999999999999"}) {
    EXPECT_EQ(ParseBytes(text).status().code(), absl::StatusCode::kOutOfRange)
        << text;
  }
}

}  // namespace
}  // namespace attnd::attnctl
