#include "core/printable.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/string_view.h"

namespace attnd {
namespace {

TEST(PrintableTest, LeavesTextAsItIs) {
  for (const char* text :
       {"", "query: expected [2, 4], got \"x\"", "C:\\path\\x41", "/t\u00fcr",
        "\u00a0\u03b1\u2192\uffee", "\U0001f600\U0010ffff"}) {
    EXPECT_EQ(Printable(text), text);
  }
}

TEST(PrintableTest, EscapesControlCharacters) {
  EXPECT_EQ(Printable("a\nb\r\tc"), "a\\x0ab\\x0d\\x09c");
  EXPECT_EQ(Printable("\x1b[31mred\x7f"), "\\x1b[31mred\\x7f");
  EXPECT_EQ(Printable(absl::string_view("\0x", 2)), "\\x00x");
  // A terminal interprets U+009B as the start of an escape sequence.
  EXPECT_EQ(Printable("\xc2\x9b"
                      "2J"),
            "\\xc2\\x9b2J");
}

TEST(PrintableTest, EscapesWhatBreaksLinesOrTurnsThemRound) {
  // NOLINTNEXTLINE(misc-misleading-bidirectional)
  for (const char* text : {"\u2028", "\u2029", "\u202e", "\u2066", "\u200f",
                           "\u200b", "\u061c", "\ufeff"}) {
    EXPECT_EQ(Printable(text).substr(0, 2), "\\x") << text;
  }
}

TEST(PrintableTest, EscapesBytesThatAreNoUtf8) {
  EXPECT_EQ(Printable("\x80z"), "\\x80z");
  EXPECT_EQ(Printable("\xff\xfe"), "\\xff\\xfe");
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf");  // an overlong "/"
  EXPECT_EQ(Printable("\xe0\x80\x8a"),
            "\\xe0\\x80\\x8a");  // an overlong newline
  EXPECT_EQ(Printable("\xed\xa0\x80"),
            "\\xed\\xa0\\x80");  // half of a surrogate pair
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(Printable("\xe2\x82"), "\\xe2\\x82");  // an incomplete sequence
  EXPECT_EQ(Printable("\xe2(\xa1"), "\\xe2(\\xa1");
}

TEST(PrintableTest, EveryByteAloneAndInPairsGivesOneLineOfItsOwn) {
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      const std::string text = {static_cast<char>(first),
                                static_cast<char>(second)};
      const std::string printable = Printable(text);
      EXPECT_EQ(Printable(printable), printable);
      EXPECT_EQ(printable.find('\n'), std::string::npos);
      EXPECT_EQ(printable.find('\x1b'), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace attnd
