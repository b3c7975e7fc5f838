// Computes, with f32 products, what one tile of query rows adds to dK and dV of
// a tile of keys, and what these keys add to the rows' dQ. Only
// core/kernels/flash_backward.cc includes this.
#if defined(ATTND_CORE_KERNELS_BACKWARD_F32_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_BACKWARD_F32_INL_H_
#undef ATTND_CORE_KERNELS_BACKWARD_F32_INL_H_
#else
#define ATTND_CORE_KERNELS_BACKWARD_F32_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "base/checked_math.h"
#include "core/geometry.h"
#include "core/kernels/backward_job.h"
#include "core/kernels/backward_rows-inl.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/direct-inl.h"
#include "core/kernels/microkernels-inl.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// The number of query rows whose products are summed before that sum is added
// to dK or dV. Short sums have smaller rounding errors; kKeysPerSum says more.
inline constexpr int64_t kRowsPerSum = 32;

// Packs K and V of a tile of keys in the layout of PackedKeys.
template <BackwardKind kKind>
void PackKeysF32(const BackwardJob& job, const BackwardPlan::Tile& tile,
                 const BatchEntry& entry, float* to) {
  const PackedKeys layout = PackedKeys::Of(job.plan.shape());
  const int64_t first = tile.tile * kTileKeys;
  const KvRows key_rows = job.key.Rows(entry, tile.kv_head, first);
  const auto keys = ReaderOf<AsF32>(key_rows);
  const auto values =
      ReaderOf<AsF32>(job.value.Rows(entry, tile.kv_head, first));
  const int64_t count = std::min(kTileKeys, key_rows.count);
  const int64_t dims = job.params.head_dim;
  const int64_t v_dims = job.params.v_head_dim;
  for (int64_t j = 0; j < count; j += kPanelKeys) {
    const int64_t panel_keys = std::min(kPanelKeys, count - j);
    if constexpr (kKind != BackwardKind::kDirect) {
      PackPanel(keys.From(j, 0), panel_keys, dims, false,
                to + layout.key_panels + j * dims);
    }
    PackPanel(values.From(j, 0), panel_keys, v_dims, false,
              to + layout.value_panels + j * v_dims);
  }
  PackValueChunk(keys, count, dims, false, to + layout.key_chunk);
}

// The f32 products of a tile of keys and a tile of query rows. Call AddToKeys
// first, and AddToRows once all earlier tiles of keys have been added to dQ of
// these rows, so that the order of additions does not depend on threads. If the
// keys are packed for bf16x3 products, this class packs them again as f32.
template <BackwardKind kKind>
class F32Pair : public TilePair {
 public:
  F32Pair(const BackwardJob& job, const BackwardPlan::Tile& key_tile,
          const BatchEntry& entry, int64_t row_tile, float* slot)
      : TilePair(job, key_tile, entry, row_tile, slot, kGeometry.rows, kLanes),
        packed_(kPacksHere
                    ? slot + layout_.packed
                    : job.packed_keys + job.plan.PackedKeysAt(key_tile, entry)),
        at_(PackedKeys::Of(job.plan.shape())) {
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      whole_ &= block.fully_visible && block.seen.end == end_;
    }
  }

  // Adds the share of these query rows to dK and dV.
  void AddToKeys() {
    if constexpr (kPacksHere) {
      PackKeysF32<kKind>(job_, key_tile_, entry_, packed_);
    }
    LoadRows();
    Score();
    Multiply(Rows(layout_.grad_output, layout_.v_stride), layout_.v_stride,
             packed_ + at_.value_panels, params_.v_head_dim,
             slot_ + layout_.grad_scores);
    Weigh();
    AddTransposed(slot_ + layout_.weights, slot_ + layout_.grad_chunk,
                  params_.v_head_dim, grads_ + layout_.grad_value);
    AddTransposed(slot_ + layout_.grad_scores, slot_ + layout_.query_chunk,
                  params_.head_dim, grads_ + layout_.grad_key);
  }

  // Computes dQ += dS K. Needs dS, which AddToKeys has left in the slot.
  void AddToRows() {
    const int64_t stride = RoundToLine(params_.head_dim);
    float* rows = RowGrads();
    if (kPacksHere) {
      rows = slot_ + layout_.query;
      std::fill_n(rows, rows_.rows() * stride, 0.0F);
    }
    const float* const key_chunk = packed_ + at_.key_chunk;
    const bool masked =
        !whole_ && !ChunkIsFinite(key_chunk, params_.head_dim, end_ - begin_);
    VisitColumns(params_.head_dim, [&](int64_t column, int64_t vectors) {
      const float* keys = key_chunk + column * kTileKeys;
      for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
        const Block& block = rows_.block(b);
        if (block.seen.size() == 0) continue;
        const int64_t first = block.seen.begin - begin_;
        const int64_t steps = block.seen.size();
        const float* weights = GradScores(block.first) + first;
        if (!masked) {
          kMicrokernels.value[block.rows - 1][vectors - 1](
              weights, layout_.score_stride, keys + first * vectors * kLanes,
              steps, rows + block.first * stride + column, stride,
              PrefetchCursor(slot_, false));
          continue;
        }
        for (int64_t r = 0; r < block.rows; ++r) {
          for (int64_t v = 0; v < vectors; ++v) {
            AddMasked(
                kMicrokernels.value[0][0], weights + r * layout_.score_stride,
                layout_.score_stride,
                keys + first * vectors * kLanes + v * kLanes, vectors * kLanes,
                steps,
                [&](int64_t step) {
                  return Sees(block.first + r, first + step) ? 0xFFFFFFFFU : 0U;
                },
                rows + (block.first + r) * stride + column + v * kLanes);
          }
        }
      }
    });
    if (kPacksHere) AddTransposedRows(rows, stride);
  }

 private:
  static constexpr bool kPacksHere = kKind == BackwardKind::kBf16x3;

  // Adds `rows` to dQ of this tile, which is stored transposed.
  void AddTransposedRows(const float* rows, int64_t stride) const {
    const int64_t tile_rows = job_.plan.TileRows(entry_);
    float* const to = RowGrads();
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      for (int64_t d = 0; d < params_.head_dim; ++d) {
        to[d * tile_rows + r] += rows[r * stride + d];
      }
    }
  }

  float* Rows(int64_t part, int64_t stride, int64_t r = 0) const {
    return slot_ + part + r * stride;
  }
  float* GradScores(int64_t r) const {
    return slot_ + layout_.grad_scores + r * layout_.score_stride;
  }

  // Returns whether query row r sees key j, both counted from 0 in their tile.
  bool Sees(int64_t r, int64_t j) const {
    const Block& block = BlockOf(r);
    const int64_t key = begin_ + j;
    if (key < block.seen.begin || key >= block.seen.end) return false;
    return block.fully_visible || IsVisible(rows_.Visible(r), j);
  }

  void LoadRows() const {
    const float factor = ScoreScale(params_).query_factor;
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      const auto [head, q_row] = rows_.HeadAndRow(r);
      const int64_t row = entry_.q_begin + q_row;
      ConvertRow(AsF32(), job_.query.Row(entry_.batch, head, row),
                 params_.head_dim, layout_.q_stride, factor, false,
                 Rows(layout_.query, layout_.q_stride, r));
      ConvertRow(AsF32(), job_.grad_output.Row(entry_.batch, head, row),
                 params_.v_head_dim, layout_.v_stride, 1, false,
                 Rows(layout_.grad_output, layout_.v_stride, r));
    }
    PackValueChunk(RowReader<AsF32>{Rows(layout_.query, layout_.q_stride),
                                    layout_.q_stride},
                   rows_.rows(), params_.head_dim, false,
                   slot_ + layout_.query_chunk);
    PackValueChunk(RowReader<AsF32>{Rows(layout_.grad_output, layout_.v_stride),
                                    layout_.v_stride},
                   rows_.rows(), params_.v_head_dim, false,
                   slot_ + layout_.grad_chunk);
  }

  // Computes scores in the way of the forward pass, so that they have the same
  // bits. Otherwise P = exp(s - lse) would be wrong for large scores, whose
  // last bit may be worth more than 1.
  void Score() {
    const float* const query = Rows(layout_.query, layout_.q_stride);
    if constexpr (kKind != BackwardKind::kDirect) {
      Multiply(query, layout_.q_stride, packed_ + at_.key_panels,
               params_.head_dim, slot_ + layout_.weights);
    } else {
      DirectTileScores<AsF32>(
          rows_, begin_, entry_.kv_extent, query, layout_.q_stride,
          [&](int64_t key) {
            return ReaderOf<AsF32>(
                job_.key.Rows(entry_, key_tile_.kv_head, key));
          },
          params_.head_dim, slot_ + layout_.weights, layout_.score_stride);
    }
  }

  // Computes products[r][j] = dot(left[r], column j of the panels) for every
  // query row r and the keys j that the row's block sees.
  void Multiply(const float* left, int64_t stride, const float* panels,
                int64_t dims, float* products) {
    for (int64_t key = begin_; key < end_; key += kPanelKeys) {
      const float* panel = panels + (key - begin_) * dims;
      for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
        const Block& block = rows_.block(b);
        const KeyRange seen = Clip(block.seen, key, key + kPanelKeys);
        if (seen.size() == 0) continue;
        const int64_t vectors = CeilDiv(seen.end - key, kLanes);
        kMicrokernels.score[block.rows - 1][vectors - 1](
            left + block.first * stride, stride, panel, dims,
            products + block.first * layout_.score_stride + key - begin_,
            layout_.score_stride,
            slot_ + layout_.row_max_lanes + block.first * kLanes,
            PrefetchCursor(slot_, false));
      }
    }
  }

  void Weigh() const {
    const int64_t first_row = job_.plan.FirstRow(row_tile_, entry_);
    const int64_t keys = end_ - begin_;
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      const auto [head, q_row] = rows_.HeadAndRow(r);
      WeighRow<false>(
          rows_, BlockOf(r), r, params_.bias_dtype, begin_, keys, keys,
          *job_.lse.Row(entry_.batch, head, entry_.q_begin + q_row),
          job_.deltas[first_row + r],
          slot_ + layout_.weights + r * layout_.score_stride, GradScores(r));
    }
  }

  // Computes output[j] += sum over query rows of weights[row][j] * right[row],
  // for every key j of the tile. `output` is dK or dV.
  void AddTransposed(const float* weights, const float* right, int64_t dims,
                     float* output) const {
    const int64_t stride = RoundToLine(dims);
    const int64_t keys = end_ - begin_;
    const int64_t steps = rows_.rows();
    const bool masked = !whole_ && !ChunkIsFinite(right, dims, steps);
    VisitColumns(dims, [&](int64_t column, int64_t vectors) {
      const float* from = right + column * kKeysPerSum;
      int64_t key = 0;
      for (int64_t left = CeilDiv(keys, static_cast<int64_t>(kRows)); left > 0;
           --left) {
        const int64_t count = CeilDiv(keys - key, left);
        for (int64_t row = 0; !masked && row < steps; row += kRowsPerSum) {
          kMicrokernels.value_transposed[count - 1][vectors - 1](
              weights + row * layout_.score_stride + key, layout_.score_stride,
              from + row * vectors * kLanes, std::min(kRowsPerSum, steps - row),
              output + key * stride + column, stride,
              PrefetchCursor(slot_, false));
        }
        for (int64_t j = key; masked && j < key + count; ++j) {
          for (int64_t v = 0; v < vectors; ++v) {
            for (int64_t row = 0; row < steps; row += kRowsPerSum) {
              AddMasked(
                  kMicrokernels.value_transposed[0][0],
                  weights + row * layout_.score_stride + j,
                  layout_.score_stride,
                  from + row * vectors * kLanes + v * kLanes, vectors * kLanes,
                  std::min(kRowsPerSum, steps - row),
                  [&](int64_t step) {
                    return Sees(row + step, j) ? 0xFFFFFFFFU : 0U;
                  },
                  output + j * stride + column + v * kLanes);
            }
          }
        }
        key += count;
      }
    });
  }

  static bool ChunkIsFinite(const float* chunk, int64_t dims, int64_t steps) {
    bool finite = true;
    VisitColumns(dims, [&](int64_t column, int64_t vectors) {
      finite &= AllFinite(chunk + column * kKeysPerSum, steps * vectors, false);
    });
    return finite;
  }

  float* const packed_;  // PackedKeys
  const PackedKeys at_;
  bool whole_ = true;  // every row sees every key
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
