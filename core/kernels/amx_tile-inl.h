// A tile by AMX: bf16, or f32 as three bf16 parts (core/kernels/amx_bf16.h).
//
// AMX takes denormal numbers for 0, as operands and as sums, and parts of f32
// may be denormal where it is not: of less than 2^-103 some are lost, by less
// than 2^-125 in all. And NaN and infinities have no parts. So with parts
//   scores  a pair of query and key has its score computed anew, in f32, where
//           it is not finite, and where one has an element from 2^50 on and the
//           other one that may lose parts. Of all others the loss is below
//           2^-30, whatever their size, and no weight notices: |scale| *
//           head_dim is at most 2^40, which the plan sees to. Finite ones keep
//           the bits that the backward pass will have.
//   values  n of them, 0 or from 2^-80 on, lose less than n * 2^-123 of a sum
//           whose weights add up to 1 or more. Others are left out of the
//           products, and join their sums as f32.
// Both by what the pair or the value itself is, so that no bit of a row depends
// on what it does not see; what is known of whole heads and tiles only says
// where to look. For inclusion by kernels only, once a target.
#if defined(ATTND_CORE_KERNELS_AMX_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_AMX_TILE_INL_H_
#undef ATTND_CORE_KERNELS_AMX_TILE_INL_H_
#else
#define ATTND_CORE_KERNELS_AMX_TILE_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/checked_math.h"
#include "core/kernels/amx_bf16.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/forward_job.h"
#include "core/kernels/microkernels.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/pack_head-inl.h"
#include "core/kernels/pack_tiles-inl.h"
#include "core/kernels/tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// What Tile::AddCarefully calls for a row and a tile of values.
inline void AmxAddOneRow(const float* weights, int64_t weight_stride,
                         const float* value, int64_t steps, float* output,
                         int64_t output_stride, Ahead /*ahead*/) {
  AmxAddValues(1, 1, 1,
               {.first = weights, .stride = weight_stride, .part_words = 0},
               value, 0, 0, steps, false, output, output_stride);
}

class AmxTile : public Tile {
 public:
  AmxTile(const ForwardJob& job, const TileTask& task, const PackedHead& head,
          float* slot)
      : Tile(job, task, slot, Isa::kAmxBf16, job.plan.parts),
        head_(head),
        parts_(job.plan.parts),
        packing_(job.Packing(task)) {}

  // A fresh tile's. Returns the largest magnitude where queries have several
  // parts, as the bits of a float.
  uint32_t LoadQuery() const {
    const int64_t elements = 2 * RowWords(Isa::kAmxBf16, params_.head_dim);
    Bits largest = hn::Zero(kU);
    VisitQueries([&](auto as, int64_t r, const auto* from, float factor) {
      using As = decltype(as);
      auto* const pairs = reinterpret_cast<uint16_t*>(Query(r));
      if (parts_ == 1) {
        ConvertRowToBf16<As>(from, params_.head_dim, elements, factor, pairs);
      } else {
        SplitRow<kBf16PartsOfF32, As>(from, params_.head_dim, elements, factor,
                                      pairs, elements, largest);
      }
    });
    return LargestOf(largest);
  }

  // Turns to a tile whose queries are loaded.
  void Begin(uint32_t largest_query) {
    any_large_ =
        parts_ > 1 && (IsLarge(largest_query) || IsLarge(packing_.largest_key));
  }

  // One block after the other, so that its scores and weights, and at last its
  // output, stay in the first-level cache: products are so fast that these
  // would be half of the traffic.
  void Absorb(int64_t begin, int64_t end) {
    const bool first = begin <= span_.begin;
    LookAt(begin, end);
    if (any_large_) MeasureKeys();
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (block.seen.size() == 0) {
        if (first) ZeroOutput(block.first, block.rows);
        continue;
      }
      first_scored_ = block.first;
      Score(block);
      if (any_large_) MendScores(block);
      Softmax(block, [&](int64_t r, int64_t from, int64_t to)
                         HWY_ATTR { return RowMax(Scores(r), from, to); });
      if (parts_ == 1) ZeroWeights(block);
      AddValues(block, first);
      if (FinishesEarly(block)) FinishRows(block);
    }
  }

 private:
  void Score(const Block& block) const {
    const int64_t steps = RowWords(Isa::kAmxBf16, params_.head_dim);
    const int64_t first =
        begin_ + (block.seen.begin - begin_) / kAmxBlock * kAmxBlock;
    for (int64_t key = first; key < block.seen.end; key += kAmxBlock) {
      AmxScores(parts_, block.rows, 2,
                {.first = Query(block.first),
                 .stride = layout_.q_stride,
                 .part_words = steps},
                head_.Panel(key) + key % kPanelKeys * steps * parts_, steps,
                Scores(block.first) + key - begin_, score_stride_);
    }
  }

  static constexpr float kLarge = 0x1p50F;
  static constexpr float kTiny = 0x1p-103F;

  static bool IsLarge(uint32_t magnitude) {
    return magnitude >= std::bit_cast<uint32_t>(kLarge);
  }

  // What a query or a key holds: elements so large that it shows what others
  // lose, and elements that lose something.
  struct Sizes {
    bool large, tiny;
  };

  template <class As>
  static Sizes SizesOf(const typename As::Element* row, int64_t dims) {
    Bits largest = hn::Zero(kU);
    auto tiny = FirstLanes(0);
    for (int64_t d = 0; d < dims; d += kLanes) {
      const Vec size = hn::Abs(LoadAt<As>(row, dims, d));
      largest = hn::Max(largest, Magnitude(size));
      tiny = hn::Or(tiny, IsBelow(size, kTiny));
    }
    return {IsLarge(LargestOf(largest)), !hn::AllFalse(kF, tiny)};
  }

  // 0 < x < limit
  static LaneMask IsBelow(Vec x, float limit) {
    return hn::And(hn::Lt(x, hn::Set(kF, limit)), hn::Gt(x, hn::Zero(kF)));
  }

  // Calls `visit(as, key, row)` for keys, or for their values.
  template <class Visitor>
  void VisitRows(const TensorView<const std::byte>& tensor, DataType type,
                 const KeyRange& keys, const Visitor& visit) const {
    VisitType(type, [&](auto as) {
      using Element = typename decltype(as)::Element;
      for (int64_t key = keys.begin; key < keys.end; ++key) {
        visit(as, key,
              reinterpret_cast<const Element*>(
                  tensor.RowBytes(SizeOf(type), entry_.batch, task_.kv_head,
                                  entry_.kv_begin + key)));
      }
    });
  }

  void MeasureKeys() {
    VisitRows(job_.key, params_.key_dtype, {begin_, end_},
              [&](auto as, int64_t key, const auto* row) {
                key_sizes_[key - begin_] =
                    SizesOf<decltype(as)>(row, params_.head_dim);
              });
  }

  // Computes the scores anew that are not finite, or that lack what was lost.
  void MendScores(const Block& block) const {
    const Vec factor = hn::Set(kF, ScoreScale(params_).query_factor);
    const int64_t dims = params_.head_dim;
    VisitType(params_.query_dtype, [&](auto q_as) {
      using QueryAs = decltype(q_as);
      for (int64_t r = block.first; r < block.first + block.rows; ++r) {
        const auto at = rows_.HeadAndRow(r);
        const auto* const query =
            QueryRow<QueryAs>(job_, entry_, at.first, at.second);
        const Sizes q_sizes = SizesOf<QueryAs>(query, dims);
        VisitRows(
            job_.key, params_.key_dtype, block.seen,
            [&](auto k_as, int64_t key, const auto* row) HWY_ATTR {
              float& score = Scores(r)[key - begin_];
              const Sizes& sizes = key_sizes_[key - begin_];
              const bool lacks = (q_sizes.large && sizes.tiny) ||
                                 (q_sizes.tiny && sizes.large);
              if (!lacks && std::isfinite(score)) return;
              Vec sum = hn::Zero(kF);
              for (int64_t d = 0; d < dims; d += kLanes) {
                const Vec q = hn::Mul(factor, LoadAt<QueryAs>(query, dims, d));
                sum = hn::MulAdd(q, LoadAt<decltype(k_as)>(row, dims, d), sum);
              }
              score = hn::GetLane(hn::SumOfLanes(kF, sum));
            });
      }
    });
  }

  // From the block's last key to where a product of whole tiles ends.
  void ZeroWeights(const Block& block) const {
    const int64_t end = block.seen.end - begin_;
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      auto* const weights = reinterpret_cast<uint16_t*>(Scores(r));
      std::fill(weights + RoundUp(end, kLanes),
                weights + RoundUp(end, kAmxBlock), uint16_t{0});
    }
  }

  // To the output, or where that is `fresh` in its place.
  void AddValues(const Block& block, bool fresh) {
    // In steps, by whole tiles: weights are 0 in what this adds.
    const int64_t first = (block.seen.begin - begin_) / kAmxBlock * kAmxSteps;
    const int64_t last =
        CeilDiv(block.seen.end - begin_, kAmxBlock) * kAmxSteps;
    const bool plain = (block.plain && parts_ == 1) || ValuesAreFinite([&] {
                         return parts_ > 1 ? !FindOddValues() : LookAtValues();
                       });
    if (parts_ == 1 && fresh && !plain) ZeroOutput(block.first, block.rows);
    VisitColumnPairs([&](int64_t column, int64_t vectors, const float* values) {
      if (plain) {
        AmxAddValues(parts_, block.rows, vectors,
                     {.first = Weights(block.first, begin_),
                      .stride = score_stride_,
                      .part_words = layout_.weight_part},
                     values, ValueWords(job_, kKeysPerSum), first, last, fresh,
                     Output(block.first) + column, layout_.output_stride);
        return;
      }
      if (parts_ > 1) {
        for (int64_t v = 0; v < vectors; ++v) {
          AddPartsCarefully(block, values, vectors, v, first, last, fresh,
                            column + v * kLanes);
        }
        return;
      }
      for (int64_t step = first; step < last; step += kAmxSteps) {
        AddCarefully(block, &AmxAddOneRow, begin_ + step * per_word_, 0,
                     kAmxSteps,
                     {TilesAt(values, vectors, step), kAmxTileWords, kLanes},
                     column, vectors);
      }
    });
  }

  // Calls `visit(column, vectors, values)` for every two vectors of columns;
  // `values` is where those of the tile of keys begin.
  template <class Visitor>
  void VisitColumnPairs(const Visitor& visit) const {
    for (int64_t column = 0; column < layout_.output_stride;
         column += 2 * kLanes) {
      const int64_t vectors =
          std::min<int64_t>(2, (layout_.output_stride - column) / kLanes);
      visit(column, vectors,
            head_.Values(begin_) + column * (kKeysPerSum / per_word_) * parts_);
    }
  }

  // The tiles of the kAmxSteps steps from `step` on.
  const float* TilesAt(const float* values, int64_t vectors,
                       int64_t step) const {
    constexpr int64_t kSteps = kKeysPerSum / 2;
    return values + step / kSteps * ValueWords(job_, kKeysPerSum) +
           step % kSteps / kAmxSteps * parts_ * vectors * kAmxTileWords;
  }

  bool LookAtValues() const {
    bool finite = true;
    VisitColumnPairs([&](int64_t, int64_t vectors, const float* values) {
      const int64_t steps = RoundUp(end_ - begin_, kAmxBlock) / per_word_;
      for (int64_t step = 0; step < steps; step += kAmxSteps) {
        finite &= AllFinite(TilesAt(values, vectors, step), vectors * kAmxSteps,
                            true);
      }
    });
    return finite;
  }

  // Those that are not multiplied by parts.
  static LaneMask AreOdd(Vec x) {
    const Vec size = hn::Abs(x);
    const auto infinity = hn::Set(kF, std::numeric_limits<float>::infinity());
    const auto large = hn::Not(hn::Lt(size, infinity));  // or NaN
    return hn::Or(large, IsBelow(size, kLeastValue));
  }

  // Whether what products of whole tiles read of the values has odd ones, and
  // which keys. Most heads are known to have none.
  bool FindOddValues() {
    if (packing_.odd_values == 0) return false;
    bool any = false;
    const int64_t dims = params_.v_head_dim;
    const int64_t end =
        std::min(begin_ + RoundUp(end_ - begin_, kAmxBlock), entry_.kv_len);
    VisitRows(job_.value, params_.value_dtype, {begin_, end},
              [&](auto as, int64_t key, const auto* row) HWY_ATTR {
                bool odd = false;
                for (int64_t d = 0; d < dims; d += kLanes) {
                  odd |= !hn::AllFalse(
                      kF, AreOdd(LoadAt<decltype(as)>(row, dims, d)));
                }
                odd_values_[key - begin_] = odd;
                any |= odd;
              });
    return any;
  }

  // Adds vector `v` of a pair of columns, with odd values left out of the
  // products, in which the rest has the bits that it has anywhere; those that
  // are seen are then added as f32.
  void AddPartsCarefully(const Block& block, const float* values,
                         int64_t vectors, int64_t v, int64_t first,
                         int64_t last, bool fresh, int64_t column) const {
    constexpr int64_t kGroup = kBf16PartsOfF32 * kAmxTileWords;
    constexpr int64_t kMaxGroups = kMaxTileKeys / kAmxBlock;
    constexpr int64_t kChunk = kKeysPerSum / kAmxBlock * kGroup;
    HWY_ALIGN float masked[static_cast<size_t>(kMaxGroups * kGroup)];
    for (int64_t step = first; step < last; step += kAmxSteps) {
      const float* const tiles =
          TilesAt(values, vectors, step) + v * kAmxTileWords;
      float* const to = masked + step / kAmxSteps * kGroup;
      for (int64_t i = 0; i < kAmxTileWords; i += kLanes) {
        const auto word = [&](int64_t part) HWY_ATTR {
          return hn::BitCast(
              kU, hn::Load(kF, tiles + part * vectors * kAmxTileWords + i));
        };
        const Bits keep = HalvesWithParts(word(0));
        for (int64_t p = 0; p < kBf16PartsOfF32; ++p) {
          hn::Store(hn::BitCast(kF, hn::And(word(p), keep)), kF,
                    to + p * kAmxTileWords + i);
        }
      }
    }
    AmxAddValues(parts_, block.rows, 1,
                 {.first = Weights(block.first, begin_),
                  .stride = score_stride_,
                  .part_words = layout_.weight_part},
                 masked, kChunk, first, last, fresh,
                 Output(block.first) + column, layout_.output_stride);
    AddOddValues(block, column);
  }

  void AddOddValues(const Block& block, int64_t column) const {
    VisitRows(
        job_.value, params_.value_dtype, block.seen,
        [&](auto as, int64_t key, const auto* row) HWY_ATTR {
          if (!odd_values_[key - begin_]) return;
          const Vec x = LoadAt<decltype(as)>(row, params_.v_head_dim, column);
          const auto odd = AreOdd(x);
          if (hn::AllFalse(kF, odd)) return;
          for (int64_t r = block.first; r < block.first + block.rows; ++r) {
            if (!Sees(block, r, key)) continue;
            float* const output = Output(r) + column;
            const Vec old = hn::Load(kF, output);
            const Vec sum =
                hn::MulAdd(hn::Set(kF, WholeWeight(r, key)), x, old);
            hn::Store(hn::IfThenElse(odd, sum, old), kF, output);
          }
        });
  }

  // The sum of a weight's parts.
  float WholeWeight(int64_t r, int64_t key) const {
    const int64_t at = key - begin_;
    const int64_t word = at / kAmxBlock * kAmxSteps + at % kLanes;
    const int64_t shift = at % kAmxBlock < kLanes ? 16 : 0;
    float whole = 0;
    for (int64_t p = 0; p < parts_; ++p) {
      const auto bits = std::bit_cast<uint32_t>(
          Weights(r, begin_)[p * layout_.weight_part + word]);
      whole += std::bit_cast<float>((bits << shift) & 0xFFFF0000U);
    }
    return whole;
  }

  const PackedHead& head_;
  const int64_t parts_;
  const HeadPacking& packing_;
  bool any_large_ = false;  // queries or keys
  // Of the tile of keys in work, where there are any.
  Sizes key_sizes_[kMaxTileKeys];
  bool odd_values_[kMaxTileKeys];
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
