// A tile that uses the microkernels of core/kernels/microkernels.h, of f32 or
// of bf16 pairs. They multiply query rows with packed panels of K^T, and
// weights with packed rows of V.
#if defined(ATTND_CORE_KERNELS_PANEL_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_PANEL_TILE_INL_H_
#undef ATTND_CORE_KERNELS_PANEL_TILE_INL_H_
#else
#define ATTND_CORE_KERNELS_PANEL_TILE_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "base/checked_math.h"
#include "core/kernels/forward_job.h"
#include "core/kernels/microkernels-inl.h"
#include "core/kernels/microkernels.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/pack_head-inl.h"
#include "core/kernels/tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

template <TileKind kKind>
class PanelTile : public Tile {
 public:
  static constexpr TileKind kTileKind = kKind;

  PanelTile(const ForwardJob& job, const TileTask& task,
            const PackedHead<kKind>& head, float* slot)
      : Tile(job, task, slot), head_(head) {}

  uint32_t LoadQuery() const {
    VisitQueries([&](auto as, int64_t r, const auto* from, float factor) {
      Format<kKind>::PackQuery(as, from, params_.head_dim, layout_.q_stride,
                               factor, Query(r));
    });
    return 0;
  }

  void ProcessKeys(int64_t begin, int64_t end) {
    if (!SetKeyRange(begin, end)) return;
    FetchAhead(head_.Values(begin), ValueWords<kKind>(job_, end - begin));
    Score();
    const int64_t next = std::min(plan_.tile_kv, span_.end - end);
    FetchAhead(head_.Panel(end), next / kPanelKeys * PanelWords<kKind>(job_));
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      if (rows_.block(b).seen.size() == 0) continue;
      Softmax(rows_.block(b), [&](int64_t r, int64_t, int64_t) HWY_ATTR {
        return hn::Load(kF, RowMaxLanes(r));
      });
    }
    AddValues();
  }

 private:
  static constexpr int64_t kPerWord = TraitsOf(kKind).elements_per_word;

  // Sets what to prefetch: the `words` words from `from` on, which the next
  // phase of this tile will read.
  void FetchAhead(const float* from, int64_t words) {
    ahead_ = from;
    ahead_end_ = from + words;
  }

  // Returns the next part of the words that FetchAhead set, as much as a
  // microkernel call of `steps` steps can prefetch.
  PrefetchCursor NextPrefetch(int64_t steps) {
    if (ahead_ >= ahead_end_) return {slot_, false};
    const PrefetchCursor ahead(ahead_, true);
    ahead_ += std::min(steps * kLineWords, ahead_end_ - ahead_);
    return ahead;
  }

  void Score() {
    std::fill_n(RowMaxLanes(0), rows_.rows() * kLanes, kMinusInfinity);
    const int64_t steps = RowWords(kKind, params_.head_dim);
    for (int64_t key = begin_; key < end_; key += kPanelKeys) {
      const float* panel = head_.Panel(key);
      for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
        const Block& block = rows_.block(b);
        const KeyRange seen = Clip(block.seen, key, key + kPanelKeys);
        if (seen.size() == 0) continue;
        const int64_t vectors = CeilDiv(seen.end - key, kLanes);
        kernels_.score[block.rows - 1][vectors - 1](
            Query(block.first), layout_.q_stride, panel, steps,
            Scores(block.first) + key - begin_, score_stride_,
            RowMaxLanes(block.first), NextPrefetch(steps));
      }
    }
  }

  // Every kKeysPerSum keys are the outer loop and blocks of rows the inner one,
  // so that the part of V that one block reads is still in the first-level
  // cache for the next block.
  void AddValues() {
    for (int64_t key = begin_; key < end_; key += kKeysPerSum) {
      const int64_t last = std::min(key + kKeysPerSum, end_);
      VisitColumns(params_.v_head_dim, [&](int64_t column, int64_t vectors) {
        const int64_t step_words = vectors * kLanes;
        for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
          const Block& block = rows_.block(b);
          const KeyRange seen = Clip(block.seen, key, last);
          if (seen.size() == 0) continue;
          // These count steps of the sum.
          const int64_t first = (seen.begin - key) / kPerWord;
          const int64_t steps = CeilDiv(seen.end - key, kPerWord) - first;
          const float* const values = Values(key, column) + first * step_words;
          if (!block.fully_visible &&
              !ValuesAreFinite([&] { return AreValuesFinite(); })) {
            AddMasked(block, kernels_.value[0][0], key, first, steps,
                      {values, kLanes, step_words}, column, vectors);
            continue;
          }
          kernels_.value[block.rows - 1][vectors - 1](
              Weights(block.first, key) + first, score_stride_, values, steps,
              Output(block.first) + column, layout_.output_stride,
              NextPrefetch(steps));
        }
      });
    }
  }

  bool AreValuesFinite() const {
    bool finite = true;
    for (int64_t key = begin_; key < end_; key += kKeysPerSum) {
      const int64_t steps =
          CeilDiv(std::min(kKeysPerSum, end_ - key), kPerWord);
      VisitColumns(params_.v_head_dim, [&](int64_t column, int64_t vectors) {
        finite &= Format<kKind>::IsFinite(Values(key, column), steps * vectors);
      });
    }
    return finite;
  }

  // Returns the packed values of the group of columns that begins with
  // `column`, for the kKeysPerSum keys from `key` on.
  const float* Values(int64_t key, int64_t column) const {
    return head_.Values(key) + column * (kKeysPerSum / kPerWord);
  }

  float* RowMaxLanes(int64_t r) const {
    return slot_ + layout_.row_max_lanes + r * kLanes;
  }

  const PackedHead<kKind>& head_;
  const Microkernels& kernels_ = Format<kKind>::Kernels();
  const float* ahead_ = nullptr;
  const float* ahead_end_ = nullptr;
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
