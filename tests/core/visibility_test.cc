#include "core/visibility.h"

#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "core/attention_problem.h"
#include "tests/support/numbers.h"

namespace attnd {
namespace {

constexpr Causal kEveryCausal[] = {Causal::kNone, Causal::kTopLeft,
                                   Causal::kBottomRight};

// The visibility of one head of `batch` entries.
Visibility VisibilityOf(int64_t batch, int64_t q_len, int64_t kv_len,
                        const AttentionOptions& options) {
  const TensorSpec key{.shape = {batch, 1, kv_len, 1}};
  const auto problem = AttentionProblem::Create({.shape = {batch, 1, q_len, 1}},
                                                key, key, options);
  EXPECT_TRUE(problem.ok()) << problem.status();
  return problem->visibility();
}

Visibility RaggedVisibility(const AttentionOptions& options) {
  const TensorSpec key{.shape = {options.cu_seqlens_k.back(), 1}};
  const auto problem = AttentionProblem::Create(
      {.shape = {options.cu_seqlens_q.back(), 1}}, key, key, options);
  EXPECT_TRUE(problem.ok()) << problem.status();
  return problem->visibility();
}

// Says whether row i sees key j, in the words of the contract, for a batch of
// one entry.
bool Sees(const AttentionOptions& o, int64_t q_len, int64_t kv_len, int64_t i,
          int64_t j) {
  if (!o.query_lengths.empty()) q_len = o.query_lengths[0];
  if (!o.key_lengths.empty()) kv_len = o.key_lengths[0];
  int64_t p = i;
  if (!o.query_offsets.empty()) {
    p += o.query_offsets[0];
  } else if (o.causal == Causal::kBottomRight) {
    p += kv_len - q_len;
  }
  return i < q_len && j < kv_len && (o.causal == Causal::kNone || j <= p) &&
         (!o.window_left || p - j <= *o.window_left) &&
         (!o.window_right || j - p <= *o.window_right);
}

// Calls `check(options, q_len, kv_len)` for every combination of small options.
template <typename Check>
void ForEveryCombination(const Check& check) {
  const std::optional<int64_t> windows[] = {std::nullopt, 0, 2, kMax};
  const std::vector<int64_t> offsets[] = {{}, {-3}, {0}, {2}, {9}};
  const std::vector<int64_t> lengths[] = {{}, {0}, {3}};
  for (const Causal causal : kEveryCausal) {
    for (const auto& left : windows) {
      for (const auto& right : windows) {
        for (const auto& offset : offsets) {
          for (const auto& q_length : lengths) {
            for (const auto& k_length : lengths) {
              for (const int64_t q_len : {3, 4, 7}) {
                for (const int64_t kv_len : {3, 5, 8}) {
                  check(AttentionOptions{.causal = causal,
                                         .query_offsets = offset,
                                         .window_left = left,
                                         .window_right = right,
                                         .query_lengths = q_length,
                                         .key_lengths = k_length},
                        q_len, kv_len);
                  if (::testing::Test::HasFatalFailure()) return;
                }
              }
            }
          }
        }
      }
    }
  }
}

std::string ToString(const AttentionOptions& o, int64_t q_len, int64_t kv_len) {
  const auto show = [](const auto& x) {
    return x.empty() ? std::string("none") : std::to_string(x[0]);
  };
  return "causal " + std::to_string(static_cast<int>(o.causal)) + " offset " +
         show(o.query_offsets) + " left " +
         std::to_string(o.window_left.value_or(-1)) + " right " +
         std::to_string(o.window_right.value_or(-1)) + " query length " +
         show(o.query_lengths) + " key length " + show(o.key_lengths) +
         " q_len " + std::to_string(q_len) + " kv_len " +
         std::to_string(kv_len);
}

TEST(VisibilityTest, RangeHoldsExactlyTheKeysThatTheFormulaShows) {
  ForEveryCombination([](const AttentionOptions& options, int64_t q_len,
                         int64_t kv_len) {
    const BatchEntry entry = VisibilityOf(1, q_len, kv_len, options).Entry(0);
    for (int64_t i = 0; i < q_len; ++i) {
      const KeyRange range = entry.VisibleRange(i);
      ASSERT_GE(range.begin, 0);
      ASSERT_LE(range.begin, range.end);
      ASSERT_LE(range.end, kv_len);
      for (int64_t j = 0; j < kv_len; ++j) {
        ASSERT_EQ(range.begin <= j && j < range.end,
                  Sees(options, q_len, kv_len, i, j))
            << ToString(options, q_len, kv_len) << " i " << i << " j " << j;
      }
    }
  });
}

TEST(VisibilityTest, VisiblePairsIsTheSumOfTheRanges) {
  ForEveryCombination(
      [](const AttentionOptions& options, int64_t q_len, int64_t kv_len) {
        const Visibility visibility = VisibilityOf(1, q_len, kv_len, options);
        int64_t pairs = 0;
        for (int64_t i = 0; i < q_len; ++i) {
          pairs += visibility.Entry(0).VisibleRange(i).size();
        }
        ASSERT_EQ(visibility.Entry(0).VisiblePairs(), pairs)
            << ToString(options, q_len, kv_len);
        ASSERT_EQ(visibility.VisiblePairs(), pairs);
      });
}

TEST(VisibilityTest, EntriesDifferByTheirLengthsAndOffsets) {
  const Visibility visibility = VisibilityOf(3, 4, 6,
                                             {.causal = Causal::kBottomRight,
                                              .query_lengths = {4, 1, 0},
                                              .key_lengths = {6, 5, 2}});
  EXPECT_FALSE(visibility.uniform());
  EXPECT_EQ(visibility.Entry(0).Position(0), 2);
  EXPECT_EQ(visibility.Entry(1).Position(0), 4);
  EXPECT_EQ(visibility.Entry(1).VisibleRange(0), (KeyRange{0, 5}));
  EXPECT_EQ(visibility.Entry(1).VisibleRange(1).size(), 0);
  EXPECT_EQ(visibility.Entry(1).batch, 1);
  EXPECT_EQ(visibility.Entry(1).q_len, 4);  // rows to answer, seeing or not
  EXPECT_EQ(visibility.VisiblePairs(), (3 + 4 + 5 + 6) + 5 + 0);

  const Visibility offsets = VisibilityOf(
      2, 1, 6, {.causal = Causal::kTopLeft, .query_offsets = {0, 4}});
  EXPECT_EQ(offsets.Entry(0).VisibleRange(0), (KeyRange{0, 1}));
  EXPECT_EQ(offsets.Entry(1).VisibleRange(0), (KeyRange{0, 5}));
  EXPECT_FALSE(offsets.uniform());

  const Visibility one =
      VisibilityOf(2, 1, 6, {.causal = Causal::kTopLeft, .query_offsets = {4}});
  EXPECT_EQ(one.Entry(0).VisibleRange(0), (KeyRange{0, 5}));
  EXPECT_EQ(one.Entry(1).VisibleRange(0), (KeyRange{0, 5}));
  EXPECT_TRUE(one.uniform());
  EXPECT_EQ(one.VisiblePairs(), 10);
}

TEST(VisibilityTest, RaggedEntriesCountFromTheirOwnFirstRowAndKey) {
  const Visibility visibility =
      RaggedVisibility({.causal = Causal::kBottomRight,
                        .window_left = 2,
                        .cu_seqlens_q = {0, 3, 3, 4},
                        .cu_seqlens_k = {0, 3, 5, 12}});
  EXPECT_FALSE(visibility.uniform());
  const BatchEntry prompt = visibility.Entry(0);
  EXPECT_EQ(prompt.q_begin, 0);
  EXPECT_EQ(prompt.q_len, 3);
  EXPECT_EQ(prompt.VisibleRange(2), (KeyRange{0, 3}));
  const BatchEntry nothing = visibility.Entry(1);
  EXPECT_EQ(nothing.q_len, 0);
  EXPECT_EQ(nothing.kv_len, 2);
  const BatchEntry decode = visibility.Entry(2);
  EXPECT_EQ(decode.batch, 0);
  EXPECT_EQ(decode.q_begin, 3);
  EXPECT_EQ(decode.kv_begin, 5);
  EXPECT_EQ(decode.Position(0), 6);
  EXPECT_EQ(decode.VisibleRange(0), (KeyRange{4, 7}));
  EXPECT_EQ(visibility.VisiblePairs(), (1 + 2 + 3) + 0 + 3);
}

TEST(VisibilityTest, TheLargestNumbersDoNotOverflow) {
  constexpr int64_t kLen = int64_t{1} << 29;
  EXPECT_EQ(VisibilityOf(1, kLen, kLen, {}).VisiblePairs(), kLen * kLen);
  EXPECT_EQ(
      VisibilityOf(1, kLen, kLen, {.causal = Causal::kTopLeft}).VisiblePairs(),
      kLen * kLen / 2 + kLen / 2);
  EXPECT_EQ(
      VisibilityOf(1, 1, kLen, {.causal = Causal::kBottomRight}).VisiblePairs(),
      kLen);
  EXPECT_EQ(
      VisibilityOf(1, kLen, 1, {.causal = Causal::kBottomRight}).VisiblePairs(),
      1);
  for (const int64_t offset :
       {Visibility::kMaxPosition, -Visibility::kMaxPosition}) {
    // No bound of its own: an offset alone hides nothing.
    EXPECT_EQ(VisibilityOf(1, 2, 3, {.query_offsets = {offset}}).VisiblePairs(),
              6);
    EXPECT_EQ(VisibilityOf(1, 2, 3,
                           {.query_offsets = {offset},
                            .window_left = kMax,
                            .window_right = kMax})
                  .VisiblePairs(),
              6);
    EXPECT_EQ(
        VisibilityOf(
            1, 2, 3,
            {.query_offsets = {offset}, .window_left = 0, .window_right = 0})
            .VisiblePairs(),
        0);
    EXPECT_EQ(
        VisibilityOf(1, 2, 3,
                     {.causal = Causal::kTopLeft, .query_offsets = {offset}})
            .VisiblePairs(),
        offset > 0 ? 6 : 0);
  }
}

// Windows as far as offsets reach, and beyond.
TEST(VisibilityTest, TheLargestWindowsAreWindowsStill) {
  constexpr int64_t kFar = Visibility::kMaxPosition;
  for (const int64_t window : {kFar - 2, kFar - 1, kFar, kFar + 1, kMax}) {
    for (const AttentionOptions& options :
         {AttentionOptions{.query_offsets = {kFar}, .window_left = window},
          {.query_offsets = {-kFar}, .window_right = window}}) {
      const BatchEntry entry = VisibilityOf(1, 3, 4, options).Entry(0);
      for (int64_t i = 0; i < 3; ++i) {
        const KeyRange range = entry.VisibleRange(i);
        for (int64_t j = 0; j < 4; ++j) {
          EXPECT_EQ(range.begin <= j && j < range.end,
                    Sees(options, 3, 4, i, j))
              << ToString(options, 3, 4) << " i " << i << " j " << j;
        }
      }
    }
  }
}

TEST(VisibilityTest, NoEntriesSeeNothing) {
  EXPECT_EQ(VisibilityOf(0, 4, 5, {}).VisiblePairs(), 0);
  EXPECT_EQ(RaggedVisibility({.cu_seqlens_q = {0}, .cu_seqlens_k = {0}})
                .VisiblePairs(),
            0);
}

}  // namespace
}  // namespace attnd
