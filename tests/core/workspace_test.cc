#include "core/workspace.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace attnd {
namespace {

TEST(WorkspaceTest, IsAlignedAndWritableToItsLastByte) {
  for (const int64_t size_bytes : {0, 1, 63, 64, 65, 4096, 100001}) {
    const absl::StatusOr<Workspace> workspace = Workspace::Reserve(size_bytes);
    ASSERT_TRUE(workspace.ok()) << workspace.status();
    EXPECT_EQ(workspace->size_bytes(), size_bytes);
    ASSERT_NE(workspace->data(), nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(workspace->data()) %
                  static_cast<uintptr_t>(Workspace::kAlignment),
              0U);
    std::memset(workspace->data(), 1, static_cast<size_t>(size_bytes));
  }
}

TEST(WorkspaceTest, MovesItsBlock) {
  Workspace first = Workspace::Reserve(128).value();
  std::byte* const block = first.data();
  const Workspace second = std::move(first);
  EXPECT_EQ(second.data(), block);
  EXPECT_EQ(second.size_bytes(), 128);
}

TEST(WorkspaceTest, StartsEmpty) {
  const Workspace workspace;
  EXPECT_EQ(workspace.data(), nullptr);
  EXPECT_EQ(workspace.size_bytes(), 0);
}

TEST(WorkspaceTest, RefusesWhatNoSystemHas) {
  EXPECT_EQ(
      Workspace::Reserve(std::numeric_limits<int64_t>::max()).status().code(),
      absl::StatusCode::kResourceExhausted);
}

TEST(WorkspaceTest, RefusesWhatThisSystemHasNot) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers abort on a block this large";
#else
  EXPECT_EQ(Workspace::Reserve(int64_t{1} << 60).status().code(),
            absl::StatusCode::kResourceExhausted);
#endif
}

// Under address sanitizer pools keep no memory, because it checks only blocks
// of malloc.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kPools = false;
#else
constexpr bool kPools = true;
#endif

constexpr int64_t kMiB = int64_t{1} << 20;

TEST(WorkspacePoolTest, IsAlignedAndWritableToItsLastByte) {
  WorkspacePool pool;
  for (const int64_t size_bytes :
       {int64_t{0}, int64_t{1}, WorkspacePool::kSmallestBytes - 1,
        WorkspacePool::kSmallestBytes, WorkspacePool::kSmallestBytes + 1, kMiB,
        2 * kMiB - 1, 2 * kMiB, 2 * kMiB + 1, 9 * kMiB + 1}) {
    for (int times = 0; times < 2; ++times) {
      const absl::StatusOr<Workspace> workspace = pool.Reserve(size_bytes);
      ASSERT_TRUE(workspace.ok()) << workspace.status();
      EXPECT_EQ(workspace->size_bytes(), size_bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(workspace->data()) %
                    static_cast<uintptr_t>(Workspace::kAlignment),
                0U);
      std::memset(workspace->data(), 1, static_cast<size_t>(size_bytes));
    }
  }
}

TEST(WorkspacePoolTest, HandsOutAgainWhatCameBack) {
  if (!kPools) GTEST_SKIP();
  WorkspacePool pool;
  std::byte* block = nullptr;
  {
    const Workspace first = pool.Reserve(3 * kMiB).value();
    block = first.data();
    EXPECT_EQ(pool.idle_bytes(), 0);
    // While the first block is held, the pool returns another one.
    EXPECT_NE(pool.Reserve(3 * kMiB).value().data(), block);
  }
  EXPECT_GE(pool.idle_bytes(), 6 * kMiB);
  const Workspace second = pool.Reserve(3 * kMiB - 100).value();
  EXPECT_EQ(second.data(), block);
}

// Returns how many bytes of a block and of what follows it are in memory.
int64_t ResidentBytes(const Workspace& workspace, int64_t mapped_bytes) {
  const auto page_bytes = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages(
      static_cast<size_t>(mapped_bytes / page_bytes));
  EXPECT_EQ(mincore(workspace.data(), static_cast<size_t>(mapped_bytes),
                    pages.data()),
            0);
  return page_bytes *
         std::count_if(pages.begin(), pages.end(),
                       [](unsigned char page) { return page & 1; });
}

// Admission reserves what a job asks for, so its blocks must not hold more.
TEST(WorkspacePoolTest, ALargeBlockHoldsOnlyWhatWasAskedFor) {
  if (!kPools) GTEST_SKIP();
  constexpr int64_t kMappedBytes = 18 * kMiB;
  const auto page_bytes = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  WorkspacePool pool;
  std::byte* block = nullptr;
  for (const int64_t size_bytes :
       {17 * kMiB + 5 * page_bytes, 18 * kMiB, 16 * kMiB + 1,
        17 * kMiB + page_bytes, 16 * kMiB + page_bytes}) {
    const Workspace workspace = pool.Reserve(size_bytes).value();
    if (block == nullptr) block = workspace.data();
    EXPECT_EQ(workspace.data(), block);
    std::memset(block, 1, static_cast<size_t>(size_bytes));
    EXPECT_EQ(ResidentBytes(workspace, kMappedBytes),
              (size_bytes + page_bytes - 1) / page_bytes * page_bytes)
        << size_bytes;
  }
}

// Returns whether the system was told never to use huge pages at `address`, as
// /proc/self/smaps reports it.
bool HasOnlySmallPages(const std::byte* address) {
  std::ifstream smaps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  bool found = false;
  std::string line;
  while (std::getline(smaps, line)) {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    char dash = 0;
    std::istringstream range(line);
    if (range >> std::hex >> begin >> dash >> end && dash == '-') {
      found = begin <= wanted && wanted < end;
    } else if (found && line.starts_with("VmFlags:")) {
      return line.find(" nh") != std::string::npos;
    }
  }
  return false;
}

// If a system uses huge pages wherever it can, ResidentBytes would be too large
// in the test above. This test works on other systems, too.
TEST(WorkspacePoolTest, OnlyWholeHugePagesOfWhatWasAskedForCanBeHuge) {
  if (!kPools) GTEST_SKIP();
  if (access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK) != 0) {
    GTEST_SKIP() << "the system has no transparent huge pages";
  }
  constexpr int64_t kHugeBytes = 2 * kMiB;
  constexpr int64_t kMappedBytes = 18 * kMiB;
  WorkspacePool pool;
  // A fresh block, and one that grows and shrinks.
  for (const int64_t size_bytes :
       {17 * kMiB, 18 * kMiB, 16 * kMiB + 1, 17 * kMiB, 18 * kMiB}) {
    SCOPED_TRACE(size_bytes);
    const Workspace workspace = pool.Reserve(size_bytes).value();
    for (int64_t at = 0; at < kMappedBytes; at += kHugeBytes) {
      EXPECT_EQ(HasOnlySmallPages(workspace.data() + at),
                at + kHugeBytes > size_bytes)
          << at;
    }
  }
}

TEST(WorkspacePoolTest, KeepsNoMoreThanItsBound) {
  WorkspacePool pool(4 * kMiB);
  {
    std::vector<Workspace> held;
    held.reserve(8);
    for (int i = 0; i < 8; ++i) held.push_back(pool.Reserve(kMiB).value());
  }
  EXPECT_EQ(pool.idle_bytes(), kPools ? 4 * kMiB : 0);
  { const Workspace larger = pool.Reserve(5 * kMiB).value(); }
  EXPECT_LE(pool.idle_bytes(), 4 * kMiB);
}

TEST(WorkspacePoolTest, FreesFirstWhatWasIdleLongest) {
  if (!kPools) GTEST_SKIP();
  WorkspacePool pool;
  { const Workspace older = pool.Reserve(kMiB).value(); }
  std::byte* const younger = pool.Reserve(kMiB / 2).value().data();
  pool.TrimTo(kMiB);
  EXPECT_EQ(pool.idle_bytes(), kMiB / 2);
  EXPECT_EQ(pool.Reserve(kMiB / 2).value().data(), younger);
  pool.TrimTo(0);
  EXPECT_EQ(pool.idle_bytes(), 0);
}

TEST(WorkspacePoolTest, RefusesWhatNoSystemHas) {
  WorkspacePool pool;
  { const Workspace kept = pool.Reserve(kMiB).value(); }
  for (const int64_t size_bytes :
       {std::numeric_limits<int64_t>::max(), (int64_t{1} << 62) - 1}) {
#if defined(__SANITIZE_ADDRESS__)
    if (size_bytes != std::numeric_limits<int64_t>::max()) continue;
#endif
    EXPECT_EQ(pool.Reserve(size_bytes).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
}

TEST(WorkspacePoolTest, IsOutlivedByItsBlocks) {
  Workspace workspace;
  {
    WorkspacePool pool;
    workspace = pool.Reserve(kMiB).value();
  }
  std::memset(workspace.data(), 1, kMiB);
}

TEST(WorkspacePoolTest, ServesThreadsAtOnce) {
  WorkspacePool pool(8 * kMiB);
  std::vector<std::thread> threads;
  for (int t = 1; t <= 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 200; ++i) {
        const int64_t size_bytes = (1 + i % 5) * kMiB / 2;
        const Workspace workspace = pool.Reserve(size_bytes).value();
        auto* const ends = workspace.data();
        ends[0] = std::byte(t);
        ends[size_bytes - 1] = std::byte(t);
        pool.TrimTo(4 * kMiB);
        ASSERT_EQ(ends[0], std::byte(t));
        ASSERT_EQ(ends[size_bytes - 1], std::byte(t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace attnd
