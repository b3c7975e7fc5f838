// The query rows of one tile: which keys each of them sees, and how the options
// change their scores. Forward and backward kernels use it.
#if defined(ATTND_CORE_KERNELS_ROW_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_ROW_TILE_INL_H_
#undef ATTND_CORE_KERNELS_ROW_TILE_INL_H_
#else
#define ATTND_CORE_KERNELS_ROW_TILE_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "base/checked_math.h"
#include "core/kernels/microkernels.h"
#include "core/kernels/score_inputs.h"
#include "core/kernels/softmax-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// Splits the scale of the scores into a factor for the query and one for the
// softmax.
struct ScoreScale {
  // |scale| * log2(e) can exceed the largest float. Then a power of two of it,
  // by which a multiplication is exact, goes to the query.
  explicit ScoreScale(const AttentionParams& params)
      : query_factor(
            std::copysign(std::abs(params.score_scale) > 1e38F ? 4.0F : 1.0F,
                          params.score_scale)),
        magnitude(std::abs(params.score_scale / query_factor)) {}

  float query_factor;  // has the scale's sign
  float magnitude;     // what is left, >= 0
};

inline KeyRange Clip(const KeyRange& range, int64_t begin, int64_t end) {
  const int64_t low = std::clamp(range.begin, begin, end);
  return {low, std::clamp(range.end, low, end)};
}

inline KeyRange Union(const KeyRange& a, const KeyRange& b) {
  if (a.size() == 0) return b;
  if (b.size() == 0) return a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

// The query rows first <= r < first + rows of a tile, which a microkernel
// multiplies together.
struct Block {
  int64_t first = 0;
  int64_t rows = 0;
  KeyRange all;   // the keys that every row sees
  KeyRange some;  // the smallest range with all keys that any row sees
  // For the current tile of keys: the keys whose scores are computed (an empty
  // range if no row sees any), and whether every row sees all of these keys and
  // no option changes the scores.
  KeyRange seen;
  bool fully_visible = false;
};

// Neighbouring rows go to different blocks if the ranges of keys that they see
// begin or end further apart than this. Under a causal rule the ranges of
// neighbouring rows differ by one key. Where the next head begins, they may
// have little in common.
inline constexpr int64_t kMaxStep = 2;

// The rows of a tile: some rows of the matrix that the query rows of all heads
// of one kv head form. `visible` is memory of the caller, `visible_stride`
// bytes for each row. It holds a bit for each key of the current tile of keys:
// whether the row sees it.
class RowTile {
 public:
  // A block has up to `block_rows` rows. It counts as fully visible only if the
  // number of keys that it sees is a multiple of `granule`, which is a multiple
  // of the lanes of a SIMD vector.
  RowTile(const ScoreInputs& inputs, const BatchEntry& entry, int64_t kv_head,
          int64_t first_row, int64_t rows, uint8_t* visible,
          int64_t visible_stride, int64_t block_rows = kGeometry.rows,
          int64_t granule = kLanes)
      : inputs_(inputs),
        params_(inputs.problem.params()),
        entry_(entry),
        first_head_(kv_head * params_.HeadsPerGroup() +
                    first_row / entry.q_len),
        first_q_row_(first_row % entry.q_len),
        rows_(rows),
        adjusts_(params_.AdjustsScores()),
        magnitude_(ScoreScale(params_).magnitude),
        visible_(visible),
        visible_stride_(visible_stride),
        block_rows_(block_rows),
        granule_(granule) {
    for (int64_t r = 0; r < rows_; ++r) {
      ranges_[r] = entry_.VisibleRange(HeadAndRow(r).second);
    }
    MakeBlocks();
  }

  int64_t rows() const { return rows_; }
  int64_t num_blocks() const { return num_blocks_; }
  const Block& block(int64_t b) const { return blocks_[b]; }
  bool adjusts() const { return adjusts_; }

  // Returns the smallest range that includes every key that any row sees.
  KeyRange Span() const {
    KeyRange span;
    for (int64_t b = 0; b < num_blocks_; ++b) {
      span = Union(span, blocks_[b].some);
    }
    return span;
  }

  // Returns the query head of the tile's row r, and the number of that query
  // row in the batch entry.
  std::pair<int64_t, int64_t> HeadAndRow(int64_t r) const {
    const int64_t row = first_q_row_ + r;
    // In most tiles all rows belong to one head, and divisions are slow.
    if (row < entry_.q_len) return {first_head_, row};
    return {first_head_ + row / entry_.q_len, row % entry_.q_len};
  }

  // Makes begin <= j < end the current tile of keys, and updates Block::seen
  // and Block::fully_visible. Returns whether any row sees any of these keys.
  bool SetKeyRange(int64_t begin, int64_t end) {
    begin_ = begin;
    end_ = end;
    bool any = false;
    for (int64_t b = 0; b < num_blocks_; ++b) {
      ClassifyBlock(blocks_[b]);
      any |= blocks_[b].seen.size() > 0;
    }
    return any;
  }

  // Returns the key from which the SIMD vectors that cover `seen` start,
  // counted from the first key of the current tile. It is a multiple of kSums
  // vectors, so that weights are always added in the same order, wherever
  // `seen` begins.
  int64_t FirstVector(const KeyRange& seen) const {
    return (seen.begin - begin_) / (kSums * kLanes) * (kSums * kLanes);
  }

  // Returns the visibility bits of row r, one for each key of the current tile.
  uint8_t* Visible(int64_t r) const { return visible_ + r * visible_stride_; }

  // Returns how soft cap, ALiBi and bias change the scores of row r in the
  // current tile of keys.
  RowAdjustment Adjustment(int64_t r) const {
    const auto [head, q_row] = HeadAndRow(r);
    RowAdjustment row(params_, magnitude_);
    if (params_.has_alibi) {
      row.slope = inputs_.problem.alibi_slopes()[static_cast<size_t>(head)];
      row.distance = entry_.Position(q_row) - begin_;
    }
    if (params_.has_bias) {
      row.bias = BiasRow(head, q_row);
      row.bias_stride = inputs_.bias.strides[3];
    }
    return row;
  }

 private:
  // Puts neighbouring rows that see similar ranges of keys into blocks of
  // nearly equal size. Equal, because a microkernel of only one row is slow:
  // each of its sums has to wait for the one before.
  void MakeBlocks() {
    const auto near = [](int64_t a, int64_t b) {
      return std::abs(a - b) <= kMaxStep;
    };
    for (int64_t begin = 0; begin < rows_;) {
      int64_t end = begin + 1;
      while (end < rows_ && near(ranges_[end].begin, ranges_[end - 1].begin) &&
             near(ranges_[end].end, ranges_[end - 1].end)) {
        ++end;
      }
      for (int64_t left = CeilDiv(end - begin, block_rows_); left > 0; --left) {
        Block& block = blocks_[num_blocks_++];
        block = {};
        block.first = begin;
        block.rows = CeilDiv(end - begin, left);
        block.all = block.some = ranges_[begin];
        for (int64_t r = begin; r < begin + block.rows; ++r) {
          block.all = {std::max(block.all.begin, ranges_[r].begin),
                       std::min(block.all.end, ranges_[r].end)};
          block.some = Union(block.some, ranges_[r]);
        }
        begin += block.rows;
      }
    }
  }

  void ClassifyBlock(Block& block) const {
    block.seen = Clip(block.some, begin_, end_);
    if (block.seen.size() == 0) return;
    block.fully_visible =
        !adjusts_ && Clip(block.all, begin_, end_) == block.seen &&
        block.seen.begin == begin_ && block.seen.size() % granule_ == 0;
    if (block.fully_visible && !params_.has_mask) return;
    bool any = false;
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      const auto [some, all] = Mark(r, block.seen);
      any |= some;
      block.fully_visible &= all;
    }
    if (!any) block.seen = {};
  }

  // Sets the visibility bits of row r from the range of keys that it sees, the
  // mask, and -inf in the bias. Returns whether the row sees any key of `seen`,
  // and whether it sees every key of the SIMD vectors that cover `seen`.
  std::pair<bool, bool> Mark(int64_t r, const KeyRange& seen) const {
    const auto [head, q_row] = HeadAndRow(r);
    const KeyRange range = Clip(ranges_[r], begin_, end_);
    uint8_t* const bits = Visible(r);
    const std::byte* mask = nullptr;
    const std::byte* bias = nullptr;
    const int64_t mask_stride = inputs_.mask.strides[3];
    const int64_t bias_stride = inputs_.bias.strides[3];
    if (params_.has_mask) {
      mask = inputs_.mask.Row(entry_.batch, head, q_row) + begin_ * mask_stride;
    }
    if (params_.has_bias) bias = BiasRow(head, q_row);
    LaneMask some = FirstLanes(0);
    LaneMask all = FirstLanes(kLanes);
    for (int64_t j = FirstVector(seen); j < seen.end - begin_; j += kLanes) {
      LaneMask shown = hn::AndNot(FirstLanes(range.begin - begin_ - j),
                                  FirstLanes(range.end - begin_ - j));
      if (mask != nullptr) {
        shown = hn::And(shown, LoadShown(mask, mask_stride, j, end_ - begin_));
      }
      if (bias != nullptr) {
        VisitType(params_.bias_dtype, [&](auto as) {
          const Vec x =
              LoadBroadcast<decltype(as)>(bias, bias_stride, j, end_ - begin_);
          shown = hn::AndNot(hn::Eq(x, hn::Set(kF, kMinusInfinity)), shown);
        });
      }
      StoreVisible(shown, bits, j);
      some = hn::Or(some, shown);
      all = hn::And(all, shown);
    }
    return {!hn::AllFalse(kF, some), hn::AllTrue(kF, all)};
  }

  const std::byte* BiasRow(int64_t head, int64_t q_row) const {
    const int64_t bytes = SizeOf(params_.bias_dtype);
    return inputs_.bias.RowBytes(bytes, entry_.batch, head, q_row) +
           begin_ * inputs_.bias.strides[3] * bytes;
  }

  const ScoreInputs& inputs_;
  const AttentionParams& params_;
  const BatchEntry entry_;
  // The query head of the tile's first row, and its number in the batch entry.
  const int64_t first_head_;
  const int64_t first_q_row_;
  const int64_t rows_;
  const bool adjusts_;
  const float magnitude_;
  uint8_t* const visible_;
  const int64_t visible_stride_;
  const int64_t block_rows_;
  const int64_t granule_;
  int64_t num_blocks_ = 0;
  int64_t begin_ = 0;  // the current tile of keys
  int64_t end_ = 0;
  // These arrays are in unions, so that the constructor does not spend time on
  // setting 20 KiB to zero for each tile.
  union {
    KeyRange ranges_[kMaxTileRows];  // of the first rows_
  };
  union {
    Block blocks_[kMaxTileRows];  // the first num_blocks_
  };
};

// Adds weights * values for one row and one SIMD vector of columns, with the
// values of hidden keys (in the backward pass also of rows) replaced by 0. The
// order of additions is the same as for a whole block. `words` is the vector of
// values of step 0, and those of later steps follow `step_words` apart.
// `keep(step)` returns a mask of the bits of a word that are visible.
template <class Keep>
void AddMasked(const ValueBlockFn one_by_one, const float* weights,
               int64_t weight_stride, const float* words, int64_t step_words,
               int64_t steps, const Keep& keep, float* output) {
  const hn::RebindToUnsigned<Floats> du;
  HWY_ALIGN float values[kKeysPerSum * kLanes];
  for (int64_t step = 0; step < steps; ++step) {
    const auto x = hn::BitCast(du, hn::LoadU(kF, words + step * step_words));
    hn::Store(hn::BitCast(kF, hn::And(x, hn::Set(du, keep(step)))), kF,
              values + step * kLanes);
  }
  one_by_one(weights, weight_stride, values, steps, output, 0,
             PrefetchCursor(values, false));
}

// Returns a mask for words that hold two bf16 each: a half of the mask is all
// ones if that bf16 is finite, and otherwise 0.
HWY_INLINE Bits FiniteHalves(Bits words) {
  const auto half = [&](uint32_t exponent, uint32_t bits) HWY_ATTR {
    const Bits mask = hn::Set(kU, exponent);
    return hn::IfThenZeroElse(hn::Eq(hn::And(words, mask), mask),
                              hn::Set(kU, bits));
  };
  return hn::Or(half(0x7F800000U, 0xFFFF0000U), half(0x00007F80U, 0x0000FFFFU));
}

// Returns whether `count` SIMD vectors at `words` hold no NaN and no infinity,
// the numbers whose exponent bits are all ones. Each lane holds one f32, or two
// bf16 if `pairs`.
inline bool AllFinite(const float* words, int64_t count, bool pairs) {
  const hn::RebindToUnsigned<Floats> du;
  const auto high = hn::Set(du, 0x7F800000U);
  const auto low = hn::Set(du, pairs ? 0x00007F80U : 0x7F800000U);
  auto bad = hn::Zero(du);
  for (int64_t i = 0; i < count; ++i) {
    const auto x = hn::BitCast(du, hn::LoadU(kF, words + i * kLanes));
    const auto is =
        hn::Or(hn::Eq(hn::And(x, high), high), hn::Eq(hn::And(x, low), low));
    bad = hn::Or(bad, hn::IfThenElseZero(is, high));
  }
  return hn::AllTrue(du, hn::Eq(bad, hn::Zero(du)));
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
