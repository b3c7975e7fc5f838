// A tile with few query rows. It reads K and V where they lie in the input,
// because packing them would take longer than the products.
#if defined(ATTND_CORE_KERNELS_DIRECT_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_DIRECT_TILE_INL_H_
#undef ATTND_CORE_KERNELS_DIRECT_TILE_INL_H_
#else
#define ATTND_CORE_KERNELS_DIRECT_TILE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/checked_math.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/direct-inl.h"
#include "core/kernels/forward_job.h"
#include "core/kernels/microkernels-inl.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/pack_head-inl.h"
#include "core/kernels/tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// Computes in f32, even if the other tiles of the job use bf16 products.
template <TileKind kKind>
class DirectTile : public Tile {
 public:
  static constexpr TileKind kTileKind = kKind;

  DirectTile(const ForwardJob& job, const TileTask& task, float* slot)
      : Tile(job, task, slot) {}

  uint32_t LoadQuery() const {
    VisitQueries([&](auto as, int64_t r, const auto* from, float factor) {
      Format<kKind>::PackQuery(as, from, params_.head_dim, layout_.q_stride,
                               factor, Query(r));
    });
    return 0;
  }

  void ProcessKeys(int64_t begin, int64_t end) {
    if (!SetKeyRange(begin, end)) return;
    LocateValues();
    Score();
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      if (rows_.block(b).seen.size() == 0) continue;
      Softmax(rows_.block(b),
              [&](int64_t r, int64_t first, int64_t last)
                  HWY_ATTR { return RowMax(Scores(r), first, last); });
    }
    AddValues();
  }

 private:
  void Score() const {
    VisitType(params_.key_dtype, [&](auto as) {
      using As = decltype(as);
      DirectTileScores<As>(
          rows_, begin_, entry_.kv_extent, Query(0), layout_.q_stride,
          [&](int64_t key) {
            return ReaderOf<As>(job_.key.Rows(entry_, task_.kv_head, key));
          },
          params_.head_dim, Scores(0), score_stride_);
    });
  }

  // Sets values_ to the rows of V in the input, or to converted copies of them
  // in the slot.
  void LocateValues() {
    const KvRows rows = job_.value.Rows(entry_, task_.kv_head, begin_);
    if (!plan_.converts_values || (!ConvertsAlways() && AllFullyVisible())) {
      values_ = rows;
      return;
    }
    float* const to = slot_ + layout_.values;
    const int64_t stride = layout_.output_stride;
    values_ = {.first = reinterpret_cast<const std::byte*>(to),
               .count = end_ - begin_,
               .stride_bytes = stride * SizeOf(DataType::kF32),
               .type = DataType::kF32};
    VisitReader(rows, [&](auto from) {
      for (int64_t j = 0; j < end_ - begin_; ++j) {
        ConvertRow(from.as, from.At(j, 0), params_.v_head_dim, stride, 1,
                   Format<kKind>::kRounds, to + j * stride);
      }
    });
  }

  // Returns whether V cannot be read in the input, because its rows are not
  // whole SIMD vectors or its numbers must be rounded first.
  bool ConvertsAlways() const {
    return params_.v_head_dim % kLanes != 0 ||
           (Format<kKind>::kRounds && params_.value_dtype != DataType::kBF16);
  }

  // Returns whether every block of the tile sees all keys that it computes. A
  // block that does not may have to search V for NaN, for which it needs f32
  // copies.
  bool AllFullyVisible() const {
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (block.seen.size() > 0 && !block.fully_visible) return false;
    }
    return true;
  }

  // A few rows read V in one pass, as it comes from memory. With more rows,
  // there is a visit for each block and group of columns, and each visit
  // prefetches its share of the next kKeysPerSum rows of V.
  void AddValues() {
    const int64_t row_bytes = params_.v_head_dim * SizeOf(values_.type);
    if (rows_.rows() <= kStreamRows && rows_.num_blocks() == 1) {
      AddBlock(rows_.block(0), begin_, end_, 0, params_.v_head_dim,
               RowsAhead::Stream(row_bytes));
      return;
    }
    const int64_t visits = rows_.num_blocks() *
                           CeilDiv(params_.v_head_dim, kGeometry.panel_keys());
    const int64_t share = CeilDiv(kKeysPerSum, visits);
    for (int64_t key = begin_; key < end_; key += kKeysPerSum) {
      const int64_t last = std::min(key + kKeysPerSum, end_);
      int64_t next = key + kKeysPerSum;
      VisitColumns(params_.v_head_dim, [&](int64_t column, int64_t vectors) {
        for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
          AddBlock(rows_.block(b), key, last, column, vectors * kLanes,
                   RowsAhead::Slowly(Values(next), row_bytes, visits));
          next += share;
        }
      });
    }
  }

  void AddBlock(const Block& block, int64_t begin, int64_t end, int64_t column,
                int64_t columns, const RowsAhead& ahead) {
    const KeyRange seen = Clip(block.seen, begin, end);
    if (seen.size() == 0) return;
    if (!block.fully_visible &&
        !ValuesAreFinite([&] { return AreValuesFinite(); })) {
      for (int64_t key = begin; key < seen.end; key += kKeysPerSum) {
        const KeyRange of = Clip(seen, key, key + kKeysPerSum);
        AddMasked(block, kMicrokernels.value[0][0], key, of.begin - key,
                  of.size(),
                  {F32Values().At(of.begin - begin_, column), kLanes,
                   F32Values().stride},
                  column, CeilDiv(columns, kLanes));
      }
      return;
    }
    VisitReader(values_, [&](auto values) {
      DirectValues(Weights(block.first, begin), score_stride_,
                   values.From(begin - begin_, column), seen.begin - begin,
                   seen.end - begin, columns, block.rows,
                   Output(block.first) + column, layout_.output_stride, ahead);
    });
  }

  // Requires that values_ has f32 elements. It does if any block hides keys.
  bool AreValuesFinite() const {
    bool finite = true;
    for (int64_t key = begin_; key < end_; ++key) {
      finite &= AllFinite(F32Values().At(key - begin_, 0),
                          CeilDiv(params_.v_head_dim, kLanes), false);
    }
    return finite;
  }

  // Returns the address of the row of V of `key`, which may lie after the
  // current tile of keys if it is only prefetched.
  const std::byte* Values(int64_t key) const {
    return values_.first + (key - begin_) * values_.stride_bytes;
  }
  RowReader<AsF32> F32Values() const { return ReaderOf<AsF32>(values_); }

  // Of the current tile of keys.
  KvRows values_ = {nullptr, 0, 0, DataType::kF32};
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
