#include "core/mask.h"

#include <gtest/gtest.h>

namespace attnd {
namespace {

constexpr Causal kEveryCausal[] = {Causal::kNone, Causal::kTopLeft,
                                   Causal::kBottomRight};

AttentionParams Params(Causal causal, int64_t q_len, int64_t kv_len) {
  AttentionParams params;
  params.causal = causal;
  params.q_len = q_len;
  params.kv_len = kv_len;
  return params;
}

// The contract's words: key j is seen by row i when j <= p(i).
bool Sees(Causal causal, int64_t q_len, int64_t kv_len, int64_t i, int64_t j) {
  if (causal == Causal::kNone) return true;
  return j <= i + (causal == Causal::kBottomRight ? kv_len - q_len : 0);
}

TEST(MaskTest, RangeHoldsExactlyTheKeysThatTheFormulaShows) {
  for (const Causal causal : kEveryCausal) {
    for (int64_t q_len = 0; q_len <= 9; ++q_len) {
      for (int64_t kv_len = 0; kv_len <= 9; ++kv_len) {
        const Mask mask(Params(causal, q_len, kv_len));
        for (int64_t i = 0; i < q_len; ++i) {
          const KeyRange range = mask.VisibleRange(0, i);
          ASSERT_GE(range.begin, 0);
          ASSERT_LE(range.begin, range.end);
          ASSERT_LE(range.end, kv_len);
          for (int64_t j = 0; j < kv_len; ++j) {
            ASSERT_EQ(range.begin <= j && j < range.end,
                      Sees(causal, q_len, kv_len, i, j))
                << "causal " << static_cast<int>(causal) << " q_len " << q_len
                << " kv_len " << kv_len << " i " << i << " j " << j;
          }
        }
      }
    }
  }
}

TEST(MaskTest, VisiblePairsIsTheSumOfTheRanges) {
  for (const Causal causal : kEveryCausal) {
    for (int64_t q_len = 0; q_len <= 20; ++q_len) {
      for (int64_t kv_len = 0; kv_len <= 20; ++kv_len) {
        const Mask mask(Params(causal, q_len, kv_len));
        int64_t pairs = 0;
        for (int64_t i = 0; i < q_len; ++i) {
          pairs += mask.VisibleRange(0, i).size();
        }
        ASSERT_EQ(mask.VisiblePairs(), pairs)
            << "causal " << static_cast<int>(causal) << " q_len " << q_len
            << " kv_len " << kv_len;
      }
    }
  }
}

TEST(MaskTest, VisiblePairsOfTheLongestSequencesDoNotOverflow) {
  constexpr int64_t kLen = int64_t{1} << 31;
  EXPECT_EQ(Mask(Params(Causal::kNone, kLen, kLen)).VisiblePairs(),
            int64_t{1} << 62);
  EXPECT_EQ(Mask(Params(Causal::kTopLeft, kLen, kLen)).VisiblePairs(),
            (int64_t{1} << 61) + kLen / 2);
  EXPECT_EQ(Mask(Params(Causal::kBottomRight, 1, kLen)).VisiblePairs(), kLen);
  EXPECT_EQ(Mask(Params(Causal::kBottomRight, kLen, 1)).VisiblePairs(), 1);
}

TEST(MaskTest, EveryHeadSeesTheSame) {
  const Mask mask(Params(Causal::kBottomRight, 4, 7));
  EXPECT_EQ(mask.VisibleRange(0, 2), mask.VisibleRange(5, 2));
  EXPECT_EQ(mask.VisibleRange(0, 3), (KeyRange{0, 7}));
}

}  // namespace
}  // namespace attnd
