// Tests which memory the server accepts from a client, and how long it stays
// mapped.
#include "server/shared_memory/shared_region.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/server/memfd.h"

namespace attnd::server {
namespace {

constexpr int64_t kUnevenBytes = 10'000;  // not a multiple of the page size
constexpr uid_t kUid = 1;
constexpr uid_t kOtherUid = 2;

class SharedRegionTest : public ::testing::Test {
 protected:
  std::shared_ptr<const SharedRegion> Register(UniqueFd fd) {
    auto region = registry_.Register(std::move(fd), kUid);
    EXPECT_TRUE(region.ok()) << region.status();
    return region.ok() ? *region : nullptr;
  }
  std::string Refusal(UniqueFd fd) {
    return std::string(
        registry_.Register(std::move(fd), kUid).status().message());
  }

  RegionRegistry registry_{10 * kUnevenBytes};
};

TEST_F(SharedRegionTest, IsTheSameMemory) {
  const UniqueFd fd = MakeMemfd(kUnevenBytes);
  const auto region = Register(Duplicate(fd));
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(region->size_bytes(), kUnevenBytes);
  EXPECT_EQ(pwrite(fd.get(), "hello", 5, kUnevenBytes - 5), 5);
  EXPECT_EQ(std::memcmp(region->data() + kUnevenBytes - 5, "hello", 5), 0);
  std::memcpy(region->writable_data(), "world", 5);
  char read[5];
  EXPECT_EQ(pread(fd.get(), read, 5, 0), 5);
  EXPECT_EQ(std::memcmp(read, "world", 5), 0);
}

TEST_F(SharedRegionTest, HandlesAreKnownUntilUnregistered) {
  const auto first = Register(MakeMemfd(kUnevenBytes));
  const auto second = Register(MakeMemfd(kUnevenBytes));
  EXPECT_EQ(first->handle().size(), 16U);
  EXPECT_NE(first->handle(), second->handle());
  EXPECT_EQ(registry_.Find(first->handle()), first);
  registry_.Unregister(first->handle());
  EXPECT_EQ(registry_.Find(first->handle()), nullptr);
  EXPECT_EQ(registry_.Find(second->handle()), second);
  EXPECT_EQ(registry_.Find(""), nullptr);
  // A caller that already has the region keeps it.
  EXPECT_EQ(first->data()[0], std::byte{0});
}

TEST_F(SharedRegionTest, RefusesWhatCouldChangeItsSize) {
  for (const int missing : {F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL}) {
    const std::string refusal =
        Refusal(MakeMemfd(kUnevenBytes, kNeededSeals & ~missing));
    EXPECT_EQ(refusal.find("seals: expected F_SEAL_SHRINK"), 0U) << refusal;
  }
  const std::string unsealable = Refusal(MakeMemfd(kUnevenBytes, 0, 0));
  EXPECT_EQ(unsealable.find("seals:"), 0U) << unsealable;
  const std::string empty = Refusal(MakeMemfd(0));
  EXPECT_EQ(empty, "size: expected at least 1 byte, got 0");
}

TEST_F(SharedRegionTest, RefusesWhatIsNoMemfd) {
  int pipe_fds[2];
  ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  const UniqueFd other_end(pipe_fds[1]);
  const auto opened = [](const char* path, int flags) {
    return UniqueFd(open(path, flags | O_CLOEXEC, 0600));
  };
  std::vector<UniqueFd> others;
  others.emplace_back(pipe_fds[0]);
  others.push_back(opened("/dev/zero", O_RDWR));
  others.push_back(opened("/proc/self/status", O_RDONLY));
  others.push_back(opened("/", O_RDONLY | O_DIRECTORY));
  others.push_back(opened("/proc/self/exe", O_RDONLY));
  for (UniqueFd& fd : others) {
    ASSERT_TRUE(fd.valid());
    const std::string refusal = Refusal(std::move(fd));
    EXPECT_EQ(refusal.find("descriptor: expected a memfd"), 0U) << refusal;
  }
  // This file is on tmpfs, but nobody can seal it.
  const UniqueFd folder = opened("/dev/shm", O_RDONLY | O_DIRECTORY);
  UniqueFd file(
      openat(folder.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file.valid()) GTEST_SKIP() << "no tmpfs on /dev/shm";
  ASSERT_EQ(ftruncate(file.get(), kUnevenBytes), 0);
  const std::string refusal = Refusal(std::move(file));
  EXPECT_EQ(refusal.find("seals: expected"), 0U) << refusal;
}

TEST_F(SharedRegionTest, RefusesHugePagesOfAPool) {
  const UniqueFd fd(
      memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
  if (!fd.valid() || ftruncate(fd.get(), 2 << 20) != 0) {
    GTEST_SKIP() << "this kernel has no hugetlbfs";
  }
  ASSERT_EQ(fcntl(fd.get(), F_ADD_SEALS, kNeededSeals), 0);
  EXPECT_EQ(Refusal(Duplicate(fd)),
            "descriptor: expected a memfd, which lies on tmpfs, got hugetlbfs "
            "(MFD_HUGETLB)");
}

TEST_F(SharedRegionTest, DoesNotWriteWhereItMayNot) {
  for (const int seal : {F_SEAL_WRITE, F_SEAL_FUTURE_WRITE}) {
    const UniqueFd fd = MakeMemfd(kUnevenBytes, 0);
    ASSERT_EQ(pwrite(fd.get(), "hello", 5, 0), 5);
    ASSERT_EQ(fcntl(fd.get(), F_ADD_SEALS, kNeededSeals | seal), 0);
    const auto region = Register(Duplicate(fd));
    ASSERT_NE(region, nullptr);
    EXPECT_EQ(region->writable_data(), nullptr);
    EXPECT_EQ(std::memcmp(region->data(), "hello", 5), 0);
  }
  const UniqueFd fd = MakeMemfd(kUnevenBytes);
  const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
  const auto region = Register(UniqueFd(open(path.c_str(), O_RDONLY)));
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(region->writable_data(), nullptr);
}

TEST_F(SharedRegionTest, AUidHasAQuota) {
  std::vector<std::shared_ptr<const SharedRegion>> regions;
  regions.reserve(10);
  for (int i = 0; i < 9; ++i) {
    regions.push_back(Register(MakeMemfd(kUnevenBytes)));
  }
  EXPECT_EQ(
      Refusal(MakeMemfd(kUnevenBytes + 1)),
      "size: expected at most 10000 bytes, because uid 1 has used the rest "
      "of its 100000 (--shm-quota-bytes), got 10001");
  EXPECT_TRUE(registry_.Register(MakeMemfd(9 * kUnevenBytes), kOtherUid).ok());
  regions.push_back(Register(MakeMemfd(kUnevenBytes)));
  EXPECT_NE(Refusal(MakeMemfd(1)), "");
  // A region that a job still uses counts, even if it is not registered any
  // more.
  registry_.Unregister(regions[0]->handle());
  EXPECT_NE(Refusal(MakeMemfd(1)), "");
  regions.erase(regions.begin());
  EXPECT_NE(Register(MakeMemfd(kUnevenBytes)), nullptr);
}

TEST_F(SharedRegionTest, LimitsTheRegionsOfAUid) {
  for (int64_t i = 0; i < RegionRegistry::kMaxRegions; ++i) {
    ASSERT_NE(Register(MakeMemfd(1)), nullptr);
  }
  EXPECT_EQ(Refusal(MakeMemfd(1)),
            "regions: expected at most 256 of uid 1, got one more");
}

TEST_F(SharedRegionTest, OutlivesItsRegistry) {
  auto registry = std::make_unique<RegionRegistry>(kUnevenBytes);
  const auto region = *registry->Register(MakeMemfd(kUnevenBytes), kUid);
  registry.reset();
  EXPECT_EQ(region->data()[kUnevenBytes - 1], std::byte{0});
}

}  // namespace
}  // namespace attnd::server
