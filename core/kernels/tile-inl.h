// One tile of query rows of the forward pass, which goes over its keys, one
// tile of keys after the other. This file has the online softmax: how scores
// become weights, which maxima and sums a row keeps from one tile of keys to
// the next, and how the result is written. The classes that derive from Tile
// multiply the matrices (panel_tile-inl.h, amx_tile-inl.h, direct_tile-inl.h).
#if defined(ATTND_CORE_KERNELS_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_TILE_INL_H_
#undef ATTND_CORE_KERNELS_TILE_INL_H_
#else
#define ATTND_CORE_KERNELS_TILE_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include "base/checked_math.h"
#include "core/geometry.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/forward_job.h"
#include "core/kernels/microkernels.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/softmax-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// The number that is subtracted from the scores of a row, m, need not be their
// exact maximum, because any offset cancels in the division by the sum of the
// weights. m stays the same until a weight would exceed 2^kMaxGrowth, so the
// sums so far are rarely rescaled.
inline constexpr float kMaxGrowth = 8;

// Returns c, so that a weight is 2^((score - m) * c), as
// core/kernels/flash_attention.cc explains.
inline float ScaleLog2(const AttentionParams& params) {
  constexpr float kLog2E = 1.44269504088896340736F;
  return (params.AdjustsScores() ? 1 : ScoreScale(params).magnitude) * kLog2E;
}

// So the keys of a tile lie in one KvRows, and so do their values.
static_assert(KvSource::kAlignedKeys % kMaxTileKeys == 0);

// Returns the number of query rows of a tile. The last tile of a kv head may
// have fewer than the others.
inline int64_t RowsOf(const ForwardJob& job, const TileTask& task,
                      const BatchEntry& entry) {
  const int64_t tile_q = job.plan.Entry(task.entry).tile_q;
  return std::min(
      tile_q, job.params.HeadsPerGroup() * entry.q_len - task.tile * tile_q);
}

// Returns a query row in the input tensor. `row` counts from the first row of
// the batch entry.
template <class As>
const typename As::Element* QueryRow(const ForwardJob& job,
                                     const BatchEntry& entry, int64_t head,
                                     int64_t row) {
  return reinterpret_cast<const typename As::Element*>(job.query.RowBytes(
      SizeOf(job.params.query_dtype), entry.batch, head, entry.q_begin + row));
}

// Writes the final output and lse of one query row. `output` is the sum of the
// weighted values, `sum` the sum of the weights, and `max` the number that was
// subtracted from the scores, which lack the scale unless AdjustsScores().
inline void FinishRow(const ForwardJob& job, const BatchEntry& entry,
                      int64_t head, int64_t q_row, const float* output,
                      float max, float sum) {
  const AttentionParams& params = job.params;
  const int64_t row = entry.q_begin + q_row;
  const double scale =
      params.AdjustsScores() ? 1.0 : double{ScoreScale(params).magnitude};
  const float sink = params.has_sinks
                         ? job.problem.sink_logits()[static_cast<size_t>(head)]
                         : kMinusInfinity;
  const bool wants_lse = job.lse.data != nullptr;
  const double top = scale * double{max};
  float divisor = 1;
  double lse{sink};
  if (sum != 0 && !params.has_sinks) {
    divisor = sum;
    if (wants_lse) lse = top + std::log(double{sum});
  } else if (sum != 0) {
    // Adds exp(sink) to the sum. Both are taken relative to the larger of the
    // sink and the maximum, so that neither overflows.
    const double base = std::max(top, lse);
    const double shrink = top == base ? 1.0 : std::exp(top - base);
    const double total =
        double{sum} * shrink + (lse == -HUGE_VAL ? 0 : std::exp(lse - base));
    divisor = static_cast<float>(total / shrink);
    if (wants_lse) lse = base + std::log(total);
  }
  if (wants_lse) {
    *job.lse.Row(entry.batch, head, row) = static_cast<float>(lse);
  }
  std::byte* const to =
      job.output.RowBytes(SizeOf(params.output_dtype), entry.batch, head, row);
  VisitType(params.output_dtype, [&](auto as) {
    using As = decltype(as);
    auto* out = reinterpret_cast<typename As::Element*>(to);
    const Vec part = hn::Set(kF, 1 / divisor);
    int64_t c = 0;
    const auto at = [&]() HWY_ATTR {
      // If no key has weight, the row is 0, even if `output` holds something
      // else.
      return sum == 0 ? hn::Zero(kF) : hn::Mul(hn::LoadU(kF, output + c), part);
    };
    for (; c + kLanes <= params.v_head_dim; c += kLanes) {
      As::Store(kF, at(), out + c);
    }
    if (c < params.v_head_dim) {
      StoreFirst<As>(kF, at(), out + c,
                     static_cast<size_t>(params.v_head_dim - c));
    }
  });
}

// The base class of forward tiles. The query rows of all heads that share a kv
// head form one matrix; a tile has some consecutive rows of it. It goes over
// all keys, or over those of one split. A derived class has these methods, too:
//   // Loads the queries of a fresh tile to the slot. Returns their largest
//   // magnitude as the bits of a float if Begin needs it, and otherwise 0.
//   uint32_t LoadQuery();
//   // Processes keys begin <= key < end; begin is a multiple of tile_kv.
//   void ProcessKeys(int64_t begin, int64_t end);
class Tile {
 public:
  // Returns the smallest range that includes every key that any row sees.
  const KeyRange& span() const { return span_; }

  // Call this whenever the tile starts or continues after a yield, once its
  // queries are loaded. The argument is what LoadQuery returned.
  void Begin(uint32_t /*largest_query*/) {}

  // Prepares a fresh tile for its first keys.
  void Reset() {
    ResetSums();
    ZeroOutput(0, rows_.rows());
  }

  // Writes output and lse of all rows, or their partial results if the tile is
  // split.
  void Finish() const {
    if (entry_plan_.splits > 1) {
      StorePartials();
      return;
    }
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      FinishRows(rows_.block(b));
    }
  }

 protected:
  Tile(const ForwardJob& job, const TileTask& task, float* slot)
      : job_(job),
        params_(job.params),
        plan_(job.plan),
        task_(task),
        entry_plan_(plan_.Entry(task.entry)),
        traits_(TraitsOf(entry_plan_.kind)),
        entry_(job.SeeingEntry(task.entry)),
        layout_(plan_.slot_layout),
        slot_(slot),
        scale_log2_(ScaleLog2(params_)),
        slack_(std::min(kMaxGrowth / scale_log2_, 0x1p100F)),
        score_stride_(layout_.score_stride),
        rows_(job.scores, entry_, task.kv_head, task.tile * entry_plan_.tile_q,
              RowsOf(job, task, entry_),
              reinterpret_cast<uint8_t*>(slot + layout_.visible),
              layout_.visible_stride * 4,
              RowsOfBlock(entry_plan_.kind, kGeometry),
              KeysOfBlock(entry_plan_.kind, kGeometry)),
        span_(rows_.Span()) {
    if (entry_plan_.splits > 1) {
      const int64_t begin = task.split * KernelPlan::kKeysPerSplit;
      span_ = Clip(span_, begin, begin + KernelPlan::kKeysPerSplit);
    }
  }

  void ZeroOutput(int64_t first, int64_t rows) const {
    std::fill_n(Output(first), rows * layout_.output_stride, 0.0F);
  }

  void ResetSums() {
    std::fill_n(slot_ + layout_.max, rows_.rows(), kMinusInfinity);
    std::fill_n(slot_ + layout_.sum_lanes, rows_.rows() * kLanes, 0.0F);
  }

  // Writes the partial results, which the merge reads.
  void StorePartials() const {
    const PartialLayout layout = plan_.PartialOf(task_.entry);
    float* const to = job_.partials + plan_.PartialAt(task_);
    std::copy_n(slot_ + layout_.output, rows_.rows() * layout_.output_stride,
                to);
    std::copy_n(slot_ + layout_.max, rows_.rows(), to + layout.max);
    for (int64_t r = 0; r < rows_.rows(); ++r) to[layout.sum + r] = Sum(r);
  }

  // Writes output and lse of a block's rows in a tile that is not split.
  void FinishRows(const Block& block) const {
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      const auto [head, q_row] = rows_.HeadAndRow(r);
      FinishRow(job_, entry_, head, q_row, Output(r), slot_[layout_.max + r],
                Sum(r));
    }
  }

  // Makes begin <= key < end the current tile of keys. Returns whether any row
  // sees any of these keys.
  bool SetKeyRange(int64_t begin, int64_t end) {
    begin_ = begin;
    end_ = end;
    values_finite_.reset();
    return rows_.SetKeyRange(begin, end);
  }

  // Returns whether V has no NaN and no infinity at the current keys. Only
  // blocks with rows that do not see all of these keys need to know. `look()`
  // reads V to find out; it is called at most once for each tile of keys.
  template <class Look>
  bool ValuesAreFinite(const Look& look) {
    if (!values_finite_) values_finite_ = look();
    return *values_finite_;
  }

  // Calls `load(as, r, from, factor)` for every row r of the tile: `from` is
  // the query row in the input, `as` converts its elements to floats, and
  // `factor` is what to multiply them by.
  template <class Load>
  void VisitQueries(const Load& load) const {
    const float factor = ScoreScale(params_).query_factor;
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      const auto at = rows_.HeadAndRow(r);
      VisitType(params_.query_dtype, [&](auto as) {
        using As = decltype(as);
        load(as, r, QueryRow<As>(job_, entry_, at.first, at.second), factor);
      });
    }
  }

  // Turns a block's scores into weights, and updates each row's maximum and
  // sum. `largest_of(r, begin, end)` returns the maximum of each lane over the
  // scores of row r, if the row sees all keys from begin to end. One loop
  // computes the maxima of all rows, and the next one their weights, because
  // the steps of one row depend on one another but rows do not.
  template <class LargestOf>
  void Softmax(const Block& block, const LargestOf& largest_of) {
    const int64_t begin = rows_.FirstVector(block.seen);
    const int64_t end = block.seen.end - begin_;
    const int64_t last = block.first + block.rows;
    float base[kMaxBlockRows];
    for (int64_t r = block.first; r < last; ++r) {
      Vec largest;
      if (block.fully_visible) {
        largest = largest_of(r, begin, end);
      } else {
        if (rows_.adjusts()) Adjust(r, begin, end);
        largest = HideRow(rows_.Visible(r), begin, end, Scores(r));
      }
      float& max = slot_[layout_.max + r];
      // Most tiles of keys do not raise the maximum by much. Then `max` stays,
      // and the exact maximum of this tile of keys is not needed.
      if (!hn::AllFalse(kF, hn::Gt(largest, hn::Set(kF, max + slack_)))) {
        const float new_max = hn::GetLane(
            hn::MaxOfLanes(kF, hn::Max(hn::Set(kF, max), IgnoreNan(largest))));
        if (max != kMinusInfinity) {
          Shrink(r, Exp2((max - new_max) * scale_log2_));
        }
        max = new_max;
      }
      // If no score of the row is above -inf, 0 stands in for the maximum, so
      // that all weights become 2^-inf = 0 and not NaN.
      base[r - block.first] = max == kMinusInfinity ? 0.0F : max;
    }
    for (int64_t r = block.first; r < last; ++r) {
      float* const sum = SumLanes(r);
      hn::Store(hn::Add(hn::Load(kF, sum), Weigh(r, block.fully_visible, begin,
                                                 end, base[r - block.first])),
                kF, sum);
    }
  }

  // Where packed values begin, and how many words lie between one SIMD vector
  // of columns and the next, and between one step and the next.
  struct ValueWordsAt {
    const float* first;
    int64_t vector_words;
    int64_t step_words;
  };

  // Computes output += weights * values for `vectors` SIMD vectors of columns
  // from `column` on, in a block whose rows do not see all keys. It goes row by
  // row and vector by vector, and leaves out the values that a row does not
  // see. Step 0 is key `key`; `values` begins at step `first`.
  void AddMasked(const Block& block, ValueBlockFn one_by_one, int64_t key,
                 int64_t first, int64_t steps, const ValueWordsAt& values,
                 int64_t column, int64_t vectors) const {
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      const auto keep = [&](int64_t step) {
        return SeenBits(block, r,
                        key + (first + step) * traits_.elements_per_word);
      };
      for (int64_t v = 0; v < vectors; ++v) {
        HWY_NAMESPACE::AddMasked(
            one_by_one, Weights(r, key) + first, score_stride_,
            values.first + v * values.vector_words, values.step_words, steps,
            keep, Output(r) + column + v * kLanes);
      }
    }
  }

  bool Sees(const Block& block, int64_t r, int64_t key) const {
    if (key >= block.seen.end) return false;
    return block.fully_visible || IsVisible(rows_.Visible(r), key - begin_);
  }

  float* Query(int64_t r) const {
    return slot_ + layout_.query + r * layout_.q_stride;
  }
  float* Scores(int64_t r) const {
    return slot_ + layout_.scores + (r - first_scored_) * score_stride_;
  }
  // Returns where the weights of row r begin for `key` and later keys.
  const float* Weights(int64_t r, int64_t key) const {
    return Scores(r) + (key - begin_) / traits_.elements_per_word;
  }
  float* Output(int64_t r) const {
    return slot_ + layout_.output + r * layout_.output_stride;
  }

  const ForwardJob& job_;
  const AttentionParams& params_;
  const KernelPlan& plan_;
  const TileTask task_;
  const EntryPlan& entry_plan_;
  const TileTraits& traits_;  // of the kind
  const BatchEntry entry_;
  const SlotLayout& layout_;
  float* const slot_;
  const float scale_log2_;  // c
  const float slack_;       // how far scores may exceed a row's maximum
  int64_t score_stride_;    // words from a row of scores to the next
  RowTile rows_;
  KeyRange span_;
  int64_t first_scored_ = 0;  // the row whose scores lie first in the slot
  int64_t begin_ = 0;         // the current tile of keys
  int64_t end_ = 0;

 private:
  static Vec IgnoreNan(Vec x) {
    return hn::IfThenElse(hn::Eq(x, x), x, hn::Set(kF, kMinusInfinity));
  }

  float* SumLanes(int64_t r) const {
    return slot_ + layout_.sum_lanes + r * kLanes;
  }
  float Sum(int64_t r) const {
    return hn::GetLane(hn::SumOfLanes(kF, hn::Load(kF, SumLanes(r))));
  }

  // Scales the output and the sum of weights of row r down after its maximum
  // has grown.
  void Shrink(int64_t r, float factor) {
    const Vec scale = hn::Set(kF, factor);
    const auto shrink = [&](float* x) HWY_ATTR {
      hn::Store(hn::Mul(hn::Load(kF, x), scale), kF, x);
    };
    shrink(SumLanes(r));
    float* output = Output(r);
    for (int64_t c = 0; c < layout_.output_stride; c += kLanes) {
      shrink(output + c);
    }
  }

  void Adjust(int64_t r, int64_t begin, int64_t end) const {
    VisitType(params_.bias_dtype, [&](auto as) {
      AdjustRow<decltype(as)>(rows_.Adjustment(r), begin, end, Scores(r));
    });
  }

  template <Operand kOperand>
  Vec WeighAs(int64_t r, bool fully_visible, int64_t begin, int64_t end,
              float max) const {
    if (max == std::numeric_limits<float>::infinity()) {
      return ExponentiateInfinite<kOperand>(
          Scores(r), fully_visible ? nullptr : rows_.Visible(r), begin, end,
          scale_log2_, layout_.term_words);
    }
    return fully_visible
               ? Exponentiate<kOperand, false>(Scores(r), nullptr, begin, end,
                                               scale_log2_, max,
                                               layout_.term_words)
               : Exponentiate<kOperand, true>(Scores(r), rows_.Visible(r),
                                              begin, end, scale_log2_, max,
                                              layout_.term_words);
  }

  Vec Weigh(int64_t r, bool fully_visible, int64_t begin, int64_t end,
            float max) const {
    switch (traits_.operand) {
      case Operand::kF32:
        return WeighAs<Operand::kF32>(r, fully_visible, begin, end, max);
      case Operand::kRoundedF32:
        return WeighAs<Operand::kRoundedF32>(r, fully_visible, begin, end, max);
      case Operand::kBf16:
        return WeighAs<Operand::kBf16>(r, fully_visible, begin, end, max);
      case Operand::kBf16x3:
        return WeighAs<Operand::kBf16x3>(r, fully_visible, begin, end, max);
    }
    return hn::Zero(kF);
  }

  // Returns a mask for one word of packed values: ones where row r sees the
  // key, zeros where it does not. The word belongs to key `key`, or to a pair
  // of keys from it on.
  uint32_t SeenBits(const Block& block, int64_t r, int64_t key) const {
    uint32_t bits = 0;
    for (int64_t i = 0; i < traits_.elements_per_word; ++i) {
      const int64_t at = key - begin_ + i;
      if (at >= block.seen.end - begin_) continue;
      if (!IsVisible(rows_.Visible(r), at)) continue;
      bits |=
          traits_.elements_per_word == 1 ? 0xFFFFFFFFU : 0xFFFFU << (16 * i);
    }
    return bits;
  }

  std::optional<bool> values_finite_;  // of the current tile of keys
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
