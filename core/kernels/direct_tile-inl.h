// A tile of few rows, by products with keys and values as they lie: packing
// them would be the larger part of the work. For inclusion by kernels only,
// once a target.
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

// Multiplies f32, whatever packed tiles do.
template <TileKind kKind>
class DirectTile : public Tile {
 public:
  static constexpr TileKind kTileKind = kKind;

  DirectTile(const ForwardJob& job, const TileTask& task, float* slot)
      : Tile(job, task, slot) {}

  uint32_t LoadQuery() const {
    VisitQueries([&](auto as, int64_t r, const auto* from, float factor) {
      Format<kKind>::template PackQuery<decltype(as)>(
          from, params_.head_dim, layout_.q_stride, factor, Query(r));
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
    const std::byte* key =
        job_.key.RowBytes(SizeOf(params_.key_dtype), entry_.batch,
                          task_.kv_head, entry_.kv_begin + begin_);
    VisitType(params_.key_dtype, [&](auto as) {
      using As = decltype(as);
      DirectTileScores<As>(rows_, begin_, Query(0), layout_.q_stride,
                           reinterpret_cast<const typename As::Element*>(key),
                           job_.key.strides[2], params_.head_dim, Scores(0),
                           score_stride_);
    });
  }

  // Where the tile's values are: as they lie, or converted in the slot.
  void LocateValues() {
    const std::byte* row =
        job_.value.RowBytes(SizeOf(params_.value_dtype), entry_.batch,
                            task_.kv_head, entry_.kv_begin + begin_);
    if (!plan_.converts_values || (!ConvertsAlways() && AllFullyVisible())) {
      value_ = row;
      value_stride_ = job_.value.strides[2];
      value_type_ = params_.value_dtype;
      return;
    }
    float* const to = slot_ + layout_.values;
    value_ = reinterpret_cast<const std::byte*>(to);
    value_stride_ = layout_.output_stride;
    value_type_ = DataType::kF32;
    VisitType(params_.value_dtype, [&](auto as) {
      using As = decltype(as);
      const auto* from = reinterpret_cast<const typename As::Element*>(row);
      for (int64_t j = 0; j < end_ - begin_; ++j) {
        ConvertRow<As>(from + j * job_.value.strides[2], params_.v_head_dim,
                       value_stride_, 1, Format<kKind>::kRounds,
                       to + j * value_stride_);
      }
    });
  }

  // Values that microkernels cannot read as they lie: rows that end within a
  // vector, or numbers that are to be rounded.
  bool ConvertsAlways() const {
    return params_.v_head_dim % kLanes != 0 ||
           (Format<kKind>::kRounds && params_.value_dtype != DataType::kBF16);
  }

  // Whether no block of the tile hides anything: what hides may have to look at
  // values, which it does as f32.
  bool AllFullyVisible() const {
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (block.seen.size() > 0 && !block.fully_visible) return false;
    }
    return true;
  }

  // Few rows take values as they come from memory; of more, each visit fetches
  // its share of the next sum's.
  void AddValues() {
    const int64_t row_bytes = params_.v_head_dim * SizeOf(value_type_);
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
                   RowsAhead::Slowly(Values(next, 0), row_bytes, visits));
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
                  {F32Values(of.begin, column), kLanes, value_stride_}, column,
                  CeilDiv(columns, kLanes));
      }
      return;
    }
    VisitType(value_type_, [&](auto as) {
      using As = decltype(as);
      DirectValues<As>(
          Weights(block.first, begin), score_stride_,
          reinterpret_cast<const typename As::Element*>(Values(begin, column)),
          value_stride_, seen.begin - begin, seen.end - begin, columns,
          block.rows, Output(block.first) + column, layout_.output_stride,
          ahead);
    });
  }

  // Where blocks hide something values are f32.
  bool AreValuesFinite() const {
    bool finite = true;
    for (int64_t key = begin_; key < end_; ++key) {
      finite &= AllFinite(F32Values(key, 0),
                          CeilDiv(params_.v_head_dim, kLanes), false);
    }
    return finite;
  }

  const std::byte* Values(int64_t key, int64_t column) const {
    return value_ +
           ((key - begin_) * value_stride_ + column) * SizeOf(value_type_);
  }
  const float* F32Values(int64_t key, int64_t column) const {
    return reinterpret_cast<const float*>(Values(key, column));
  }

  const std::byte* value_ = nullptr;  // of the tile of keys in work
  int64_t value_stride_ = 0;          // elements from key to key
  DataType value_type_ = DataType::kF32;
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
