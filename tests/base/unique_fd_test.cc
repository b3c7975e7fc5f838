#include "base/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <utility>

namespace attnd {
namespace {

bool IsOpen(int fd) { return fcntl(fd, F_GETFD) >= 0; }

int Open() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

TEST(UniqueFdTest, ClosesWhatItOwns) {
  const int fd = Open();
  {
    const UniqueFd owner(fd);
    EXPECT_TRUE(owner.valid());
    EXPECT_EQ(owner.get(), fd);
    EXPECT_TRUE(IsOpen(fd));
  }
  EXPECT_FALSE(IsOpen(fd));
  EXPECT_FALSE(UniqueFd().valid());
}

TEST(UniqueFdTest, MovesAndReleasesWithoutClosing) {
  const int fd = Open();
  UniqueFd first(fd);
  UniqueFd second = std::move(first);
  EXPECT_FALSE(first.valid());  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(second.release(), fd);
  EXPECT_FALSE(second.valid());
  EXPECT_TRUE(IsOpen(fd));
  close(fd);
}

TEST(UniqueFdTest, AssignmentClosesTheOldDescriptorWithTheSource) {
  const int old_fd = Open();
  const int new_fd = Open();
  UniqueFd target(old_fd);
  {
    UniqueFd source(new_fd);
    target = std::move(source);
  }
  EXPECT_EQ(target.get(), new_fd);
  EXPECT_FALSE(IsOpen(old_fd));
}

}  // namespace
}  // namespace attnd
