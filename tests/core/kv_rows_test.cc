#include "core/kv_rows.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "core/attention_problem.h"

namespace attnd {
namespace {

constexpr int64_t kHeads = 2;
constexpr int64_t kDim = 4;

// Checks every row of every entry of a problem against the views of its dense
// tensors.
void CheckRows(const AttentionProblem& problem) {
  const AttentionParams& params = problem.params();
  const std::vector<std::byte> key(static_cast<size_t>(problem.key_bytes()));
  const std::vector<float> value(
      static_cast<size_t>(problem.value_bytes() / 4));
  const KvSource keys = problem.KeySource(key.data());
  const KvSource values = problem.ValueSource(value.data());
  const auto key_view = problem.KeyView(key.data());
  const auto value_view = problem.ValueView(value.data());
  EXPECT_EQ(keys.data(), key.data());
  for (int64_t b = 0; b < params.batch; ++b) {
    const BatchEntry entry = problem.visibility().Entry(b);
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t j = 0; j < entry.kv_extent; ++j) {
        const int64_t seq = entry.kv_begin + j;
        const KvRows k = keys.Rows(entry, h, j);
        EXPECT_EQ(k.first, key_view.RowBytes(2, entry.batch, h, seq));
        EXPECT_EQ(k.type, DataType::kBF16);
        EXPECT_EQ(k.count, entry.kv_extent - j);
        const KvRows v = values.Rows(entry, h, j);
        EXPECT_EQ(v.first, reinterpret_cast<const std::byte*>(
                               value_view.Row(entry.batch, h, seq)));
        EXPECT_EQ(v.type, DataType::kF32);
        if (k.count < 2) continue;
        EXPECT_EQ(k.first + k.stride_bytes, keys.Rows(entry, h, j + 1).first);
        EXPECT_EQ(v.first + v.stride_bytes, values.Rows(entry, h, j + 1).first);
      }
    }
  }
}

AttentionProblem ProblemOf(const std::vector<int64_t>& shape,
                           const AttentionOptions& options) {
  const auto problem = AttentionProblem::Create(
      {.shape = shape}, {.dtype = DataType::kBF16, .shape = shape},
      {.shape = shape}, options);
  EXPECT_TRUE(problem.ok()) << problem.status();
  return *problem;
}

TEST(KvRowsTest, FollowTheLayoutOfDenseTensors) {
  CheckRows(ProblemOf({3, kHeads, 5, kDim}, {}));
  CheckRows(ProblemOf({3, 5, kHeads, kDim}, {.layout = Layout::kBshd}));
}

TEST(KvRowsTest, HoldKeysOfPadding) {
  CheckRows(ProblemOf({3, kHeads, 5, kDim}, {.key_lengths = {5, 0, 2}}));
}

TEST(KvRowsTest, CountFromTheFirstKeyOfARaggedEntry) {
  CheckRows(ProblemOf({kHeads, 9, kDim}, {.cu_seqlens_q = {0, 2, 2, 9},
                                          .cu_seqlens_k = {0, 4, 5, 9}}));
}

}  // namespace
}  // namespace attnd
