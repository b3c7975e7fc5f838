// The code that all tiles on AMX share, and the tile that multiplies bf16
// numbers. Tiles for f32 numbers are in core/kernels/amx_bf16x3_tile-inl.h.
#if defined(ATTND_CORE_KERNELS_AMX_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_AMX_TILE_INL_H_
#undef ATTND_CORE_KERNELS_AMX_TILE_INL_H_
#else
#define ATTND_CORE_KERNELS_AMX_TILE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/checked_math.h"
#include "core/kernels/amx_bf16.h"
#include "core/kernels/forward_job.h"
#include "core/kernels/microkernels.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/pack_head-inl.h"
#include "core/kernels/softmax-inl.h"
#include "core/kernels/tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// The base class of tiles on AMX. Each block of query rows computes scores,
// weights and output for the current tile of keys before the next block begins.
// It overwrites its output at the first keys, and writes the results of its
// rows right after the last. So scores, weights and output of a block stay in
// the first-level cache. The products are so fast that these numbers would
// otherwise be half of the memory traffic.
template <TileKind kKind>
class AmxTile : public Tile {
 public:
  static constexpr TileKind kTileKind = kKind;

  // NOLINTNEXTLINE(bugprone-derived-method-shadowing-base-method)
  void Reset() {
    ResetSums();
    if (span_.size() == 0) ZeroOutput(0, rows_.rows());
  }

  // NOLINTNEXTLINE(bugprone-derived-method-shadowing-base-method)
  void Finish() const {
    if (entry_plan_.splits > 1) {
      StorePartials();
      return;
    }
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (!FinishesEarly(block)) FinishRows(block);
    }
  }

 protected:
  static constexpr int kTerms = static_cast<int>(TraitsOf(kKind).terms);

  AmxTile(const ForwardJob& job, const TileTask& task,
          const PackedHead<kKind>& head, float* slot)
      : Tile(job, task, slot), head_(head) {}

  // Calls `visit(block, fresh)` for every block of query rows that sees any of
  // the current keys. `fresh` says whether these are the block's first keys.
  // After the visit, writes the output of the block if it sees no later keys.
  template <class Visitor>
  void VisitBlocks(const Visitor& visit) {
    const bool fresh = begin_ <= span_.begin;
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (block.seen.size() == 0) {
        if (fresh) ZeroOutput(block.first, block.rows);
        continue;
      }
      first_scored_ = block.first;
      visit(block, fresh);
      if (FinishesEarly(block)) FinishRows(block);
    }
  }

  void Score(const Block& block) const {
    const int64_t steps = TermWords(kKind, params_.head_dim);
    const int64_t first =
        begin_ + (block.seen.begin - begin_) / kAmxBlock * kAmxBlock;
    for (int64_t key = first; key < block.seen.end; key += kAmxBlock) {
      AmxScores<kTerms>(block.rows, 2,
                        {.first = Query(block.first),
                         .stride = layout_.q_stride,
                         .term_words = steps},
                        head_.Panel(key) + key % kPanelKeys * steps * kTerms,
                        steps, Scores(block.first) + key - begin_,
                        score_stride_);
    }
  }

  void WeighBlock(const Block& block) {
    Softmax(block, [&](int64_t r, int64_t from, int64_t to)
                       HWY_ATTR { return RowMax(Scores(r), from, to); });
  }

  // The keys that a block sees, counted in pairs of keys from the first key of
  // the tile and extended to whole blocks of kAmxBlock keys. The weights of the
  // added keys are 0.
  struct Steps {
    int64_t first, last;
  };
  Steps StepsOf(const Block& block) const {
    return {(block.seen.begin - begin_) / kAmxBlock * kAmxSteps,
            CeilDiv(block.seen.end - begin_, kAmxBlock) * kAmxSteps};
  }

  // Computes output += weights * values for `vectors` SIMD vectors of columns
  // from `column` on. If `fresh`, overwrites the output instead.
  void AddProducts(const Block& block, const Steps& steps, const float* values,
                   int64_t chunk_words, int64_t column, int64_t vectors,
                   bool fresh) const {
    AmxAddValues<kTerms>(block.rows, vectors,
                         {.first = Weights(block.first, begin_),
                          .stride = score_stride_,
                          .term_words = layout_.term_words},
                         values, chunk_words, steps.first, steps.last, fresh,
                         Output(block.first) + column, layout_.output_stride);
  }
  int64_t ChunkWords() const { return ValueWords<kKind>(job_, kKeysPerSum); }

  // Calls `visit(column, vectors, values)` for every two SIMD vectors of
  // columns. `values` is where the packed values of these columns begin for the
  // current tile of keys.
  template <class Visitor>
  void VisitColumnPairs(const Visitor& visit) const {
    constexpr int64_t kColumnWords =
        kKeysPerSum / TraitsOf(kKind).elements_per_word * kTerms;
    for (int64_t column = 0; column < layout_.output_stride;
         column += 2 * kLanes) {
      const int64_t vectors =
          std::min<int64_t>(2, (layout_.output_stride - column) / kLanes);
      visit(column, vectors, head_.Values(begin_) + column * kColumnWords);
    }
  }

  // Returns the packed AMX tiles of the kAmxSteps pairs of keys from `step` on.
  const float* TilesAt(const float* values, int64_t vectors,
                       int64_t step) const {
    constexpr int64_t kSteps = kKeysPerSum / 2;
    return values + step / kSteps * ChunkWords() +
           step % kSteps / kAmxSteps * kTerms * vectors * kAmxTileWords;
  }

 private:
  // Returns whether a block is finished after the current keys, because they
  // are the last ones that it sees and its tile is not split.
  bool FinishesEarly(const Block& block) const {
    return entry_plan_.splits == 1 && end_ == span_.end &&
           block.seen.size() > 0;
  }

  const PackedHead<kKind>& head_;
  const AmxTiles tiles_;
};

class AmxBf16Tile : public AmxTile<TileKind::kAmxBf16> {
 public:
  AmxBf16Tile(const ForwardJob& job, const TileTask& task,
              const PackedHead<kTileKind>& head, float* slot)
      : AmxTile(job, task, head, slot) {}

  uint32_t LoadQuery() const {
    const int64_t elements = 2 * RowWords(kTileKind, params_.head_dim);
    VisitQueries([&](auto as, int64_t r, const auto* from, float factor) {
      ConvertRowToBf16(as, from, params_.head_dim, elements, factor,
                       reinterpret_cast<uint16_t*>(Query(r)));
    });
    return 0;
  }

  void ProcessKeys(int64_t begin, int64_t end) {
    SetKeyRange(begin, end);
    VisitBlocks([&](const Block& block, bool fresh) {
      Score(block);
      WeighBlock(block);
      ZeroWeights(block);
      AddValues(block, fresh);
    });
  }

 private:
  // The product that Tile::AddMasked uses for one row and one AMX tile of
  // values.
  static void AddOneRow(const float* weights, int64_t weight_stride,
                        const float* value, int64_t steps, float* output,
                        int64_t output_stride, PrefetchCursor /*ahead*/) {
    AmxAddValues<1>(
        1, 1, {.first = weights, .stride = weight_stride, .term_words = 0},
        value, 0, 0, steps, false, output, output_stride);
  }

  // Sets the weights after the last key that a block sees to 0, up to the next
  // multiple of kAmxBlock keys, because the product reads these, too.
  void ZeroWeights(const Block& block) const {
    const int64_t end = block.seen.end - begin_;
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      auto* const weights = reinterpret_cast<uint16_t*>(Scores(r));
      std::fill(weights + RoundUp(end, kLanes),
                weights + RoundUp(end, kAmxBlock), uint16_t{0});
    }
  }

  void AddValues(const Block& block, bool fresh) {
    const Steps steps = StepsOf(block);
    const bool fully_visible = block.fully_visible || ValuesAreFinite([&] {
                                 return AreValuesFinite();
                               });
    if (fresh && !fully_visible) ZeroOutput(block.first, block.rows);
    VisitColumnPairs([&](int64_t column, int64_t vectors, const float* values) {
      if (fully_visible) {
        AddProducts(block, steps, values, ChunkWords(), column, vectors, fresh);
        return;
      }
      for (int64_t step = steps.first; step < steps.last; step += kAmxSteps) {
        AddMasked(block, &AddOneRow, begin_ + step * 2, 0, kAmxSteps,
                  {TilesAt(values, vectors, step), kAmxTileWords, kLanes},
                  column, vectors);
      }
    });
  }

  bool AreValuesFinite() const {
    bool finite = true;
    VisitColumnPairs([&](int64_t, int64_t vectors, const float* values) {
      const int64_t steps = RoundUp(end_ - begin_, kAmxBlock) / 2;
      for (int64_t step = 0; step < steps; step += kAmxSteps) {
        finite &= AllFinite(TilesAt(values, vectors, step), vectors * kAmxSteps,
                            true);
      }
    });
    return finite;
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
