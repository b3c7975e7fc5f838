#include "client/attnctl/terminal.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

namespace attnd::attnctl {
namespace {

bool IsBlocked(int signal) {
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  return sigismember(&mask, signal) == 1;
}

TEST(UserInputTest, SignalsAreBlockedOnlyWhileTheyAreRead) {
  ASSERT_FALSE(IsBlocked(SIGTERM));
  {
    const UserInput input(/*full_screen=*/false);
    EXPECT_TRUE(IsBlocked(SIGTERM));
  }
  EXPECT_FALSE(IsBlocked(SIGTERM));
}

TEST(UserInputTest, WithoutDescriptorsSignalsKeepTheirEffect) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none = {.rlim_cur = 0, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  {
    UserInput input(/*full_screen=*/false);
    EXPECT_FALSE(IsBlocked(SIGTERM));
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_FALSE(IsBlocked(SIGTERM));
}

}  // namespace
}  // namespace attnd::attnctl
