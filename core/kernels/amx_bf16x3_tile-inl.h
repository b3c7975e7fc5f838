// A tile on AMX that multiplies f32 numbers. Each number is split into three
// bf16 terms, whose sum it is (core/kernels/amx_bf16.h).
//
// AMX treats denormal numbers as 0, as operands and as sums. The terms of an
// f32 may be denormal even if the f32 is not: numbers below 2^-103 lose some of
// their terms, which are together less than 2^-125. NaN and infinities cannot
// be split at all. So the tile computes with some numbers separately.
//
// Scores. It computes the score of a query and a key again, in f32, if the
// score is not finite, or if one of the two has an element of 2^50 or more and
// the other has an element that may lose terms. All other scores are wrong by
// less than 2^-30 because of lost terms, whatever their size. That changes no
// weight, because the plan uses this tile only if |scale| * head_dim is at most
// 2^40. The backward pass computes the same bits for every finite score.
//
// Values. A sum of n weighted values that are 0, or 2^-80 or more, loses less
// than n * 2^-123, if the weights add up to 1 or more. All other values are
// called unsplittable. They are left out of the products and added as f32.
//
// The rule for scores depends only on the query and the key, and the rule for
// values only on the value. So no bit of a row depends on keys that the row
// does not see. The flags for whole kv heads and tiles only save a search for
// such numbers.
#if defined(ATTND_CORE_KERNELS_AMX_BF16X3_TILE_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_AMX_BF16X3_TILE_INL_H_
#undef ATTND_CORE_KERNELS_AMX_BF16X3_TILE_INL_H_
#else
#define ATTND_CORE_KERNELS_AMX_BF16X3_TILE_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "base/checked_math.h"
#include "core/kernels/amx_bf16.h"
#include "core/kernels/amx_tile-inl.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/forward_job.h"
#include "core/kernels/pack_head-inl.h"
#include "core/kernels/pack_tiles-inl.h"
#include "core/kernels/tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

class AmxBf16x3Tile : public AmxTile<TileKind::kAmxBf16x3> {
 public:
  AmxBf16x3Tile(const ForwardJob& job, const TileTask& task,
                const PackedHead<kTileKind>& head, float* slot)
      : AmxTile(job, task, head, slot), packing_(job.Packing(task)) {
    score_stride_ = layout_.terms_stride;
  }

  uint32_t LoadQuery() const {
    const int64_t elements = 2 * TermWords(kTileKind, params_.head_dim);
    Bits largest = hn::Zero(kU);
    VisitQueries([&](auto as, int64_t r, const auto* from, float factor) {
      SplitRow<kBf16Terms>(as, from, params_.head_dim, elements, factor,
                           reinterpret_cast<uint16_t*>(Query(r)), elements,
                           largest);
    });
    return LargestOf(largest);
  }

  // NOLINTNEXTLINE(bugprone-derived-method-shadowing-base-method)
  void Begin(uint32_t largest_query) {
    any_large_ = IsLarge(largest_query) || IsLarge(packing_.largest_key);
  }

  void ProcessKeys(int64_t begin, int64_t end) {
    SetKeyRange(begin, end);
    if (any_large_) MeasureKeys();
    VisitBlocks([&](const Block& block, bool fresh) {
      Score(block);
      if (any_large_) MendScores(block);
      WeighBlock(block);
      AddValues(block, fresh);
    });
  }

 private:
  static constexpr float kLarge = 0x1p50F;
  static constexpr float kTiny = 0x1p-103F;

  static bool IsLarge(uint32_t magnitude) {
    return magnitude >= std::bit_cast<uint32_t>(kLarge);
  }

  // Whether a row of Q or K has elements that are so large that lost bf16 terms
  // of the row that it is multiplied with matter (`large`), and elements that
  // are so small that they lose terms themselves (`tiny`).
  struct Sizes {
    bool large, tiny;
  };

  template <class As>
  static Sizes SizesOf(As as, const typename As::Element* row, int64_t dims) {
    Bits largest = hn::Zero(kU);
    auto tiny = FirstLanes(0);
    for (int64_t d = 0; d < dims; d += kLanes) {
      const Vec size = hn::Abs(LoadAt(as, row, dims, d));
      largest = hn::Max(largest, Magnitude(size));
      tiny = hn::Or(tiny, IsBelow(size, kTiny));
    }
    return {IsLarge(LargestOf(largest)), !hn::AllFalse(kF, tiny)};
  }

  // Returns a mask of the lanes with 0 < x < limit.
  static LaneMask IsBelow(Vec x, float limit) {
    return hn::And(hn::Lt(x, hn::Set(kF, limit)), hn::Gt(x, hn::Zero(kF)));
  }

  // Calls `visit(as, key, row)` for each of `keys`, which belong to one tile.
  // `row` is the key's row of K or V, and `as` reads its elements.
  template <class Visitor>
  void VisitRows(const KvSource& source, const KeyRange& keys,
                 const Visitor& visit) const {
    VisitReader(source.Rows(entry_, task_.kv_head, keys.begin), [&](auto rows) {
      for (int64_t key = keys.begin; key < keys.end; ++key) {
        visit(rows.as, key, rows.At(key - keys.begin, 0));
      }
    });
  }

  void MeasureKeys() {
    VisitRows(job_.key, {begin_, end_},
              [&](auto as, int64_t key, const auto* row) {
                key_sizes_[key - begin_] = SizesOf(as, row, params_.head_dim);
              });
  }

  // Computes scores of a block again, in f32, where they are not finite or
  // where bf16 terms that AMX treats as 0 matter.
  void MendScores(const Block& block) const {
    const Vec factor = hn::Set(kF, ScoreScale(params_).query_factor);
    const int64_t dims = params_.head_dim;
    VisitType(params_.query_dtype, [&](auto q_as) {
      using QueryAs = decltype(q_as);
      for (int64_t r = block.first; r < block.first + block.rows; ++r) {
        const auto at = rows_.HeadAndRow(r);
        const auto* const query =
            QueryRow<QueryAs>(job_, entry_, at.first, at.second);
        const Sizes q_sizes = SizesOf(q_as, query, dims);
        VisitRows(job_.key, block.seen,
                  [&](auto k_as, int64_t key, const auto* row) HWY_ATTR {
                    float& score = Scores(r)[key - begin_];
                    const Sizes& sizes = key_sizes_[key - begin_];
                    const bool lacks = (q_sizes.large && sizes.tiny) ||
                                       (q_sizes.tiny && sizes.large);
                    if (!lacks && std::isfinite(score)) return;
                    Vec sum = hn::Zero(kF);
                    for (int64_t d = 0; d < dims; d += kLanes) {
                      const Vec q =
                          hn::Mul(factor, LoadAt(q_as, query, dims, d));
                      sum = hn::MulAdd(q, LoadAt(k_as, row, dims, d), sum);
                    }
                    score = hn::GetLane(hn::SumOfLanes(kF, sum));
                  });
      }
    });
  }

  void AddValues(const Block& block, bool fresh) {
    const Steps steps = StepsOf(block);
    const bool splittable =
        ValuesAreFinite([&] { return !FindUnsplittableValues(); });
    VisitColumnPairs([&](int64_t column, int64_t vectors, const float* values) {
      if (splittable) {
        AddProducts(block, steps, values, ChunkWords(), column, vectors, fresh);
        return;
      }
      for (int64_t v = 0; v < vectors; ++v) {
        AddSplittable(block, steps, values, vectors, v, fresh,
                      column + v * kLanes);
        AddUnsplittable(block, column + v * kLanes);
      }
    });
  }

  static LaneMask CannotSplit(Vec x) {
    const Vec size = hn::Abs(x);
    const auto infinity = hn::Set(kF, std::numeric_limits<float>::infinity());
    const auto large = hn::Not(hn::Lt(size, infinity));  // or NaN
    return hn::Or(large, IsBelow(size, kMinSplitValue));
  }

  // Marks the keys of the current tile whose row of V has unsplittable
  // elements, up to the next multiple of kAmxBlock keys, because products read
  // these, too. Returns whether there are any. If packing found none in the kv
  // head, which is usual, it does not search.
  bool FindUnsplittableValues() {
    if (packing_.unsplittable_values == 0) return false;
    bool any = false;
    const int64_t dims = params_.v_head_dim;
    const int64_t end =
        std::min(begin_ + RoundUp(end_ - begin_, kAmxBlock), entry_.kv_len);
    VisitRows(job_.value, {begin_, end},
              [&](auto as, int64_t key, const auto* row) HWY_ATTR {
                bool found = false;
                for (int64_t d = 0; d < dims; d += kLanes) {
                  found |=
                      !hn::AllFalse(kF, CannotSplit(LoadAt(as, row, dims, d)));
                }
                unsplittable_[key - begin_] = found;
                any |= found;
              });
    return any;
  }

  // Adds the weighted values of one SIMD vector of columns, number `v` of the
  // `vectors` that are packed together, without the values that cannot be split
  // into bf16 terms. The result has the same bits as if these values were 0.
  void AddSplittable(const Block& block, const Steps& steps,
                     const float* values, int64_t vectors, int64_t v,
                     bool fresh, int64_t column) const {
    constexpr int64_t kGroup = kBf16Terms * kAmxTileWords;
    constexpr int64_t kMaxGroups = kMaxTileKeys / kAmxBlock;
    constexpr int64_t kChunk = kKeysPerSum / kAmxBlock * kGroup;
    HWY_ALIGN float masked[static_cast<size_t>(kMaxGroups * kGroup)];
    for (int64_t step = steps.first; step < steps.last; step += kAmxSteps) {
      const float* const tiles =
          TilesAt(values, vectors, step) + v * kAmxTileWords;
      float* const to = masked + step / kAmxSteps * kGroup;
      for (int64_t i = 0; i < kAmxTileWords; i += kLanes) {
        const auto word = [&](int64_t term) HWY_ATTR {
          return hn::BitCast(
              kU, hn::Load(kF, tiles + term * vectors * kAmxTileWords + i));
        };
        const Bits keep = SplittableHalves(word(0));
        for (int64_t t = 0; t < kBf16Terms; ++t) {
          hn::Store(hn::BitCast(kF, hn::And(word(t), keep)), kF,
                    to + t * kAmxTileWords + i);
        }
      }
    }
    AddProducts(block, steps, masked, kChunk, column, 1, fresh);
  }

  // Adds, in f32, the weighted values that cannot be split into bf16 terms, for
  // those rows of the block that see them.
  void AddUnsplittable(const Block& block, int64_t column) const {
    VisitRows(job_.value, block.seen,
              [&](auto as, int64_t key, const auto* row) HWY_ATTR {
                if (!unsplittable_[key - begin_]) return;
                const Vec x = LoadAt(as, row, params_.v_head_dim, column);
                const auto lanes = CannotSplit(x);
                if (hn::AllFalse(kF, lanes)) return;
                for (int64_t r = block.first; r < block.first + block.rows;
                     ++r) {
                  if (!Sees(block, r, key)) continue;
                  float* const output = Output(r) + column;
                  const Vec old = hn::Load(kF, output);
                  const Vec sum =
                      hn::MulAdd(hn::Set(kF, WholeWeight(r, key)), x, old);
                  hn::Store(hn::IfThenElse(lanes, sum, old), kF, output);
                }
              });
  }

  // Returns the weight of key `key` for row r, by adding up its stored bf16
  // terms.
  float WholeWeight(int64_t r, int64_t key) const {
    const int64_t at = key - begin_;
    const int64_t word = at / kAmxBlock * kAmxSteps + at % kLanes;
    const int64_t shift = at % kAmxBlock < kLanes ? 16 : 0;
    float whole = 0;
    for (int64_t t = 0; t < kBf16Terms; ++t) {
      const auto bits = std::bit_cast<uint32_t>(
          Weights(r, begin_)[t * layout_.term_words + word]);
      whole += std::bit_cast<float>((bits << shift) & 0xFFFF0000U);
    }
    return whole;
  }

  const HeadPacking& packing_;
  bool any_large_ = false;  // queries or keys
  // For each key of the current tile: the Sizes of its row of K, set if
  // any_large_; and whether its row of V has elements that cannot be split into
  // bf16 terms, set if FindUnsplittableValues returned true.
  Sizes key_sizes_[kMaxTileKeys];
  bool unsplittable_[kMaxTileKeys];
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
