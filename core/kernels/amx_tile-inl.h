// A tile by AMX: bf16, or f32 as three bf16 parts (core/kernels/amx_bf16.h).
// What has no such parts, NaN and infinities, is mended in f32 here. For
// inclusion by kernels only, once a target.
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
#include "core/kernels/flash_attention.h"
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
  AmxTile(const FlashJob& job, const TileTask& task, const PackedHead& head,
          float* slot)
      : Tile(job, task, slot, Isa::kAmxBf16, job.plan.parts),
        head_(head),
        parts_(job.plan.parts),
        packing_(job.Packing(task)) {}

  // A fresh tile's. Returns the largest magnitude where queries have several
  // parts, as the bits of a float: of the rows that see something, for nobody
  // knows what the others hold.
  uint32_t LoadQuery() const {
    const int64_t elements = 2 * RowWords(Isa::kAmxBf16, params_.head_dim);
    Bits largest = hn::Zero(kU);
    VisitQueries([&](auto as, int64_t r, const auto* from, float factor) {
      using As = decltype(as);
      auto* const pairs = reinterpret_cast<uint16_t*>(Query(r));
      if (parts_ == 1) {
        ConvertRowToBf16<As>(from, params_.head_dim, elements, factor, pairs);
        return;
      }
      Bits of_row = hn::Zero(kU);
      SplitRow<kBf16PartsOfF32, As>(from, params_.head_dim, elements, factor,
                                    pairs, elements, of_row);
      if (rows_.SeesAny(r)) largest = hn::Max(largest, of_row);
    });
    return LargestOf(largest);
  }

  // Turns to a tile whose queries are loaded. Whether all that it multiplies
  // has exact parts, or is not finite.
  bool Begin(uint32_t largest_query) {
    largest_query_ = largest_query;
    return parts_ == 1 || (HaveParts(largest_query, kLeastScored) &&
                           HaveParts(packing_.largest_key, kLeastScored) &&
                           HaveParts(packing_.largest_value, kLeastValue));
  }

  // One block after the other, so that its scores and weights, and at last its
  // output, stay in the first-level cache: products are so fast that these
  // would be half of the traffic.
  void Absorb(int64_t begin, int64_t end) {
    const bool first = begin <= span_.begin;
    LookAt(begin, end);
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (block.seen.size() == 0) {
        if (first) ZeroOutput(block.first, block.rows);
        continue;
      }
      first_scored_ = block.first;
      Score(block);
      if (parts_ > 1 && MayOverflow()) MendScores(block);
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

  // Whether dot products of the tile may be anything but finite.
  bool MayOverflow() const {
    const double largest = double{std::bit_cast<float>(largest_query_)} *
                           std::bit_cast<float>(packing_.largest_key);
    return !(largest * static_cast<double>(params_.head_dim) < 0x1p126);
  }

  // Products of parts make NaN of an infinite score: computes those anew.
  void MendScores(const Block& block) const {
    const float factor = ScoreScale(params_).query_factor;
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      const auto at = rows_.HeadAndRow(r);
      for (int64_t key = block.seen.begin; key < block.seen.end; ++key) {
        float& score = Scores(r)[key - begin_];
        if (std::isfinite(score)) continue;
        score = 0;
        VisitType(params_.query_dtype, [&](auto q_as) {
          VisitType(params_.key_dtype, [&](auto k_as) {
            using QueryAs = decltype(q_as);
            using KeyAs = decltype(k_as);
            const auto* const query =
                QueryRow<QueryAs>(job_, entry_, at.first, at.second);
            const auto* const keys =
                reinterpret_cast<const typename KeyAs::Element*>(
                    job_.key.RowBytes(SizeOf(params_.key_dtype), entry_.batch,
                                      task_.kv_head, entry_.kv_begin + key));
            for (int64_t d = 0; d < params_.head_dim; ++d) {
              score += factor * ElementAt<QueryAs>(query, d) *
                       ElementAt<KeyAs>(keys, d);
            }
          });
        });
      }
    }
  }

  template <class As>
  static float ElementAt(const typename As::Element* from, int64_t i) {
    return hn::GetLane(LoadFirst<As>(kF, from + i, 1));
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
    // A value that is not finite has parts that are not.
    const bool plain = (block.plain && parts_ == 1) ||
                       ValuesAreFinite([&] { return LookAtValues(); });
    if (fresh && !plain) ZeroOutput(block.first, block.rows);
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
        AddPartsCarefully(block, values, first, last, column, vectors);
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
    // Of most kv heads it is known that they have none.
    if (parts_ > 1 && packing_.largest_value < kInfinityBits) return true;
    bool finite = true;
    VisitColumnPairs([&](int64_t, int64_t vectors, const float* values) {
      const int64_t steps = RoundUp(end_ - begin_, kAmxBlock) / per_word_;
      // The first parts tell.
      for (int64_t step = 0; step < steps; step += kAmxSteps) {
        finite &= AllFinite(TilesAt(values, vectors, step), vectors * kAmxSteps,
                            true);
      }
    });
    return finite;
  }

  // Adds values of several parts, a row and a vector of columns at a time. What
  // is hidden or not finite is left out of the products, in which the rest has
  // the bits that it has anywhere; what is seen and not finite is then added as
  // f32.
  void AddPartsCarefully(const Block& block, const float* values, int64_t first,
                         int64_t last, int64_t column, int64_t vectors) const {
    constexpr int64_t kGroup = kBf16PartsOfF32 * kAmxTileWords;
    constexpr int64_t kMaxGroups = kMaxTileKeys / kAmxBlock;
    constexpr int64_t kChunk = kKeysPerSum / kAmxBlock * kGroup;
    HWY_ALIGN float masked[static_cast<size_t>(kMaxGroups * kGroup)];
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      for (int64_t v = 0; v < vectors; ++v) {
        for (int64_t step = first; step < last; step += kAmxSteps) {
          const float* const tiles =
              TilesAt(values, vectors, step) + v * kAmxTileWords;
          for (int64_t i = 0; i < kAmxSteps; ++i) {
            const int64_t key = begin_ + step * per_word_ + i;
            const Bits seen = hn::Set(
                kU, (Sees(block, r, key) ? 0x0000FFFFU : 0U) |
                        (Sees(block, r, key + kLanes) ? 0xFFFF0000U : 0U));
            const auto word = [&](int64_t part) HWY_ATTR {
              return hn::BitCast(
                  kU, hn::Load(kF, tiles + part * vectors * kAmxTileWords +
                                       i * kLanes));
            };
            const Bits keep = hn::And(seen, FiniteHalves(word(0)));
            for (int64_t p = 0; p < kBf16PartsOfF32; ++p) {
              hn::Store(hn::BitCast(kF, hn::And(word(p), keep)), kF,
                        masked + step / kAmxSteps * kGroup + p * kAmxTileWords +
                            i * kLanes);
            }
          }
        }
        float* const output = Output(r) + column + v * kLanes;
        AmxAddValues(parts_, 1, 1,
                     {.first = Weights(r, begin_),
                      .stride = score_stride_,
                      .part_words = layout_.weight_part},
                     masked, kChunk, first, last, false, output,
                     layout_.output_stride);
        AddWhatIsNotFinite(block, r, column + v * kLanes, output);
      }
    }
  }

  void AddWhatIsNotFinite(const Block& block, int64_t r, int64_t column,
                          float* output) const {
    const Vec infinity = hn::Set(kF, std::numeric_limits<float>::infinity());
    VisitType(params_.value_dtype, [&](auto as) {
      using As = decltype(as);
      for (int64_t key = block.seen.begin; key < block.seen.end; ++key) {
        if (!Sees(block, r, key)) continue;
        const auto* const row = reinterpret_cast<const typename As::Element*>(
            job_.value.RowBytes(SizeOf(params_.value_dtype), entry_.batch,
                                task_.kv_head, entry_.kv_begin + key));
        const Vec x = LoadAt<As>(row, params_.v_head_dim, column);
        const auto finite = hn::Lt(hn::Abs(x), infinity);
        if (hn::AllTrue(kF, finite)) continue;
        const Vec added = hn::MulAdd(hn::Set(kF, WholeWeight(r, key)), x,
                                     hn::Load(kF, output));
        hn::Store(hn::IfThenElse(finite, hn::Load(kF, output), added), kF,
                  output);
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
  uint32_t largest_query_ = 0;
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
