#include "core/workspace.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <utility>

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

}  // namespace
}  // namespace attnd
