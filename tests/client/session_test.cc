#include "client/attnctl/session.h"

#include <gtest/gtest.h>

#include <mutex>
#include <ostream>
#include <sstream>
#include <streambuf>
#include <string>
#include <thread>

#include "absl/strings/str_replace.h"

namespace attnd::attnctl {
namespace {

// Lets other threads run after each piece of text, so that the pieces of their
// lines mix unless something keeps a line together.
class YieldingBuffer final : public std::streambuf {
 public:
  const std::string& text() const { return text_; }

 protected:
  std::streamsize xsputn(const char* piece, std::streamsize size) override {
    {
      const std::lock_guard lock(mutex_);
      text_.append(piece, static_cast<size_t>(size));
    }
    std::this_thread::yield();
    return size;
  }
  int_type overflow(int_type c) override {
    const char character = traits_type::to_char_type(c);
    xsputn(&character, 1);
    return c;
  }

 private:
  std::mutex mutex_;
  std::string text_;
};

TEST(ScreenTest, LinesAndRedrawsOfSeveralThreadsStayWhole) {
  constexpr int kLines = 20'000;
  std::ostringstream out;
  YieldingBuffer buffer;
  std::ostream err(&buffer);
  Screen screen(out, err, /*out_is_terminal=*/false, /*err_is_terminal=*/true);
  std::thread redrawing([&] {
    for (int i = 0; i < kLines; ++i) screen.Redraw("50 %");
  });
  std::string lines;
  for (int i = 0; i < kLines; ++i) {
    screen.PrintError("trying again");
    lines += "trying again\n";
  }
  redrawing.join();
  EXPECT_TRUE(absl::StrReplaceAll(buffer.text(), {{"\r\033[K50 %", ""}}) ==
              lines)
      << "The lines are mixed.";
}

}  // namespace
}  // namespace attnd::attnctl
