// The code of the backward pass that f32 and bf16x3 products share: which query
// rows of a tile see which keys, and how scores and dP become weights and dS.
// dP, dS, D and s' are defined in core/kernels/flash_backward.cc.
#if defined(ATTND_CORE_KERNELS_BACKWARD_ROWS_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_BACKWARD_ROWS_INL_H_
#undef ATTND_CORE_KERNELS_BACKWARD_ROWS_INL_H_
#else
#define ATTND_CORE_KERNELS_BACKWARD_ROWS_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/checked_math.h"
#include "core/kernels/backward_job.h"
#include "core/kernels/exp2-inl.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/softmax-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

inline constexpr int64_t kTileKeys = BackwardPlan::kTileKeys;
static_assert(kTileKeys == kKeysPerSum);
static_assert(KvSource::kAlignedKeys % kTileKeys == 0);

// Calls `visit(r, head, row)` for each query row of a tile. r is its number in
// the tile, and `row` its index along the seq axis of the tensors.
template <class Visitor>
void VisitRows(const BackwardJob& job, const BackwardPlan::Tile& tile,
               const BatchEntry& entry, const Visitor& visit) {
  const int64_t tile_rows = job.plan.TileRows(entry);
  const int64_t first = tile.tile * tile_rows;
  const int64_t last = std::min(first + tile_rows, job.plan.RowsOf(entry));
  for (int64_t row = first; row < last; ++row) {
    visit(row - first,
          tile.kv_head * job.params.HeadsPerGroup() + row / entry.q_len,
          entry.q_begin + row % entry.q_len);
  }
}

// Returns whether a tile of query rows may see any of the keys begin <= j <
// end. It compares only the first and the last row of the tile, because the
// keys that the others see lie between those that these two see.
inline bool MaySee(const BackwardJob& job, const BatchEntry& entry,
                   int64_t row_tile, int64_t begin, int64_t end) {
  const int64_t rows = job.plan.TileRows(entry);
  const int64_t first = row_tile * rows;
  const int64_t last = std::min(first + rows, job.plan.RowsOf(entry)) - 1;
  const bool one_head = first / entry.q_len == last / entry.q_len;
  const int64_t first_row = one_head ? first % entry.q_len : 0;
  const int64_t last_row = std::min(
      one_head ? last % entry.q_len : entry.q_len - 1, entry.q_seeing - 1);
  return first_row <= last_row && entry.VisibleRange(first_row).begin < end &&
         entry.VisibleRange(last_row).end > begin;
}

// Returns the address in `slot` to which BackwardLayout::grad_key and
// grad_value must be added to find dK and dV of a tile of keys.
inline float* TileGrads(const BackwardJob& job, const BackwardPlan::Tile& tile,
                        const BatchEntry& entry, float* slot) {
  return slot + tile.tile % job.plan.KeyTilesPerRun(entry) *
                    job.plan.slot_layout().grad_words;
}

// One tile of keys and one tile of query rows, whose products give a share of
// dK and dV and a share of dQ. Knows which row sees which key, and where to add
// these shares.
class TilePair {
 public:
  // Returns whether any row of the one tile sees any key of the other.
  bool seen() const { return seen_; }

 protected:
  TilePair(const BackwardJob& job, const BackwardPlan::Tile& key_tile,
           const BatchEntry& entry, int64_t row_tile, float* slot,
           int64_t block_rows, int64_t granule)
      : job_(job),
        params_(job.params),
        entry_(entry),
        row_tile_{key_tile.entry, key_tile.kv_head, row_tile},
        key_tile_(key_tile),
        layout_(job.plan.slot_layout()),
        slot_(slot),
        grads_(TileGrads(job, key_tile, entry, slot)),
        begin_(key_tile.tile * kTileKeys),
        end_(std::min(begin_ + kTileKeys, entry.kv_len)),
        rows_(job.scores, entry, key_tile.kv_head,
              row_tile * job.plan.TileRows(entry),
              std::min(
                  job.plan.TileRows(entry),
                  job.plan.RowsOf(entry) - row_tile * job.plan.TileRows(entry)),
              reinterpret_cast<uint8_t*>(slot + layout_.visible),
              layout_.visible_stride * 4, block_rows, granule),
        seen_(begin_ < end_ && rows_.SetKeyRange(begin_, end_)) {
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      std::fill_n(block_of_ + block.first, block.rows, b);
    }
  }

  // Returns where dQ of the tile's first query row is summed. The tile's dQ is
  // transposed if its kind is kBf16x3.
  float* RowGrads() const {
    return job_.row_grads + job_.plan.FirstRow(row_tile_, entry_) *
                                RoundToLine(params_.head_dim);
  }
  const Block& BlockOf(int64_t r) const { return rows_.block(block_of_[r]); }

  const BackwardJob& job_;
  const AttentionParams& params_;
  const BatchEntry& entry_;
  const BackwardPlan::Tile row_tile_;
  const BackwardPlan::Tile key_tile_;
  const BackwardLayout& layout_;
  float* const slot_;
  float* const grads_;  // see TileGrads
  const int64_t begin_;
  const int64_t end_;
  RowTile rows_;

 private:
  bool seen_;
  int64_t block_of_[kMaxTileRows];
};

// Computes the weights P and dS for a SIMD vector of scores `s` and of dP
// `grad`. `slope` is s', the derivative of a score with respect to the dot
// product. If kSplits, numbers whose bf16 terms would be denormal become 0, and
// NaN stays NaN.
template <bool kSplits>
HWY_INLINE void WeighPairs(Vec s, Vec grad, Vec slope, Vec lse, Vec delta,
                           Vec& weight, Vec& grad_score) {
  const Vec x = hn::Mul(hn::Sub(s, lse), hn::Set(kF, 1.44269504088896340736F));
  weight = Exp2Unbounded(kF, x);
  if constexpr (kSplits) {
    weight = hn::IfThenZeroElse(hn::Lt(x, hn::Set(kF, -100.0F)), weight);
  }
  grad_score = hn::Mul(hn::Mul(weight, hn::Sub(grad, delta)), slope);
  if constexpr (kSplits) {
    const auto tiny = hn::Lt(hn::Abs(grad_score), hn::Set(kF, 0x1p-100F));
    grad_score = hn::IfThenZeroElse(tiny, grad_score);
  }
}

// Replaces the dot products and the dP of one query row by P and dS, for whole
// SIMD vectors of keys from `begin` on. Keys that the row does not see get 0.
// `visible` is null if the row sees every key.
template <bool kSplits, class Bias>
void WeighVectors(const RowAdjustment& row, const uint8_t* visible,
                  int64_t begin, int64_t end, int64_t keys, float lse,
                  float delta, float* HWY_RESTRICT scores,
                  float* HWY_RESTRICT grads) {
  for (int64_t j = begin; j < end; j += kLanes) {
    Vec slope;
    const Vec s =
        AdjustVector<Bias>(row, j, keys, hn::Load(kF, scores + j), slope);
    Vec p;
    Vec g;
    WeighPairs<kSplits>(s, hn::Load(kF, grads + j), slope, hn::Set(kF, lse),
                        hn::Set(kF, delta), p, g);
    if (visible != nullptr) {
      const LaneMask seen = LoadVisible(visible, j);
      p = hn::IfThenElseZero(seen, p);
      g = hn::IfThenElseZero(seen, g);
    }
    hn::Store(p, kF, scores + j);
    hn::Store(g, kF, grads + j);
  }
}

// Replaces the dot products and the dP of row r of a block by P and dS, over a
// tile of `keys` keys from `first` on. All keys up to `padded` that this row
// does not see get 0, because rows of other blocks may see them. If no key has
// weight, which is the case if lse is -inf, all get 0.
template <bool kSplits>
void WeighRow(const RowTile& rows, const Block& block, int64_t r,
              DataType bias_dtype, int64_t first, int64_t keys, int64_t padded,
              float lse, float delta, float* scores, float* grads) {
  int64_t begin = padded;
  int64_t end = padded;
  if (block.seen.size() > 0 && lse != kMinusInfinity) {
    begin = rows.FirstVector(block.seen);
    end = block.seen.end - first;
    VisitType(bias_dtype, [&](auto as) {
      WeighVectors<kSplits, decltype(as)>(
          rows.Adjustment(r), block.fully_visible ? nullptr : rows.Visible(r),
          begin, end, keys, lse, delta, scores, grads);
    });
  }
  for (float* x : {scores, grads}) {
    std::fill(x, x + begin, 0.0F);
    std::fill(x + std::min(padded, RoundUp(end, kLanes)), x + padded, 0.0F);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
