// Makes memory in the way in which a client makes it to share it.
#ifndef ATTND_TESTS_SERVER_MEMFD_H_
#define ATTND_TESTS_SERVER_MEMFD_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "base/unique_fd.h"

namespace attnd::server {

inline constexpr int kNeededSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

inline UniqueFd MakeMemfd(int64_t size_bytes, int seals = kNeededSeals,
                          unsigned flags = MFD_ALLOW_SEALING) {
  UniqueFd fd(memfd_create("test", flags | MFD_CLOEXEC));
  EXPECT_TRUE(fd.valid());
  EXPECT_EQ(ftruncate(fd.get(), size_bytes), 0);
  if (seals != 0) {
    EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  }
  return fd;
}

// Returns a second descriptor of the same memory.
inline UniqueFd Duplicate(const UniqueFd& fd) {
  return UniqueFd(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
}

}  // namespace attnd::server

#endif  // ATTND_TESTS_SERVER_MEMFD_H_
