#include "base/small_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace attnd {
namespace {

class SmallFileTest : public ::testing::Test {
 protected:
  SmallFileTest() {
    folder_ =
        ::testing::TempDir() + "attnd_small_file_" + std::to_string(getpid());
    std::filesystem::create_directory(folder_);
  }
  ~SmallFileTest() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path) << text;
    return path;
  }

  std::string folder_;
};

TEST_F(SmallFileTest, ReturnsAllBytesOfAFileAndOfALinkToIt) {
  const std::string text = std::string(1 << 20, 'x') + '\0';
  const std::string path = Write("file", text);
  const std::string link = folder_ + "/link";
  std::filesystem::create_symlink(path, link);
  for (const std::string& each : {path, link}) {
    const auto read = ReadSmallFile(each, 2 << 20);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(*read == text) << each;
  }
  EXPECT_EQ(ReadSmallFile(Write("empty", ""), 1 << 20).value_or("?"), "");
}

TEST_F(SmallFileTest, SaysWhyItReadsNothing) {
  // Nobody writes to it, so that reading it would never end.
  const std::string pipe = folder_ + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, folder_, std::string("/dev/zero")}) {
    EXPECT_EQ(ReadSmallFile(path, 1 << 20).status().message(),
              "it is not a regular file")
        << path;
  }
  EXPECT_EQ(ReadSmallFile(folder_ + "/none", 1 << 20).status().message(),
            "No such file or directory");
  const std::string large = Write("large", std::string((1 << 20) + 1, 'x'));
  EXPECT_EQ(ReadSmallFile(large, 1 << 20).status().message(),
            "it is larger than 1 MiB");
}

}  // namespace
}  // namespace attnd
