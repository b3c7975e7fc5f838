// The backward pass of flash attention (Dao et al. 2022, section 3; the order
// of the loops after FlashAttention-2, Dao 2023), for one tile of keys over all
// the rows that see it.
//
// Maths. With s the score by the contract's formula, P = exp(s - lse),
// D = rowsum(dO * O) and s' the derivative of s by dot(q, k) (scale, times
// 1 - tanh^2 where there is a soft cap),
//   dP = dO V^T      dS = P * (dP - D) * s'
//   dV = P^T dO      dK = dS^T Q      dQ = dS K
// Sinks are in lse, so P needs no more of them; bias and mask get no gradient.
//
// Five products a tile, each by a microkernel of the forward pass: S and dP
// against panels of K^T and V^T, dQ against K as values are, dV and dK with
// their weights read the other way round. A tile of keys keeps its dK and dV in
// the slot while the rows pass by. dQ is summed over tiles of keys in memory,
// and always in the order of the keys: a tile of rows counts the tiles that it
// took in, and the next one waits for its turn. Memory is O(N): three packed
// copies, dQ, and a number a row; by parts four copies of rows beside.
//
// On AMX the products of many rows are of three bf16 parts
// (core/kernels/backward_parts-inl.h); what has none goes this way there too.
//
// Edges are those of the forward pass: hidden pairs have P = dS = 0, and where
// a row of K, Q or dO is not finite, edge tiles take the careful way.
#include "core/kernels/flash_backward.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <optional>

#include "core/checked_math.h"
#include "core/kernels/amx_bf16.h"
#include "core/kernels/geometry.h"
#include "core/kernels/microkernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/kernels/flash_backward.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
// Highway must come after foreach_target.
#include "core/kernels/backward_parts-inl.h"
#include "core/kernels/backward_rows-inl.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/direct-inl.h"
#include "core/kernels/microkernels-inl.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/softmax-inl.h"
#include "core/kernels/targets.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kTileKeys = BackwardPlan::kTileKeys;
static_assert(kTileKeys == kKeysPerSum);

// Rows whose products are summed before they join a key's gradient: as with
// keys in the forward pass, short sums round less.
constexpr int64_t kRowsPerSum = 32;

// Packs a tile of keys as PackedKeys.
void PackKeys(const BackwardJob& job, const BackwardPlan::Tile& tile,
              const BatchEntry& entry, float* to) {
  const PackedKeys layout = PackedKeys::Of(job.plan.shape());
  const int64_t first = tile.tile * kTileKeys;
  const int64_t last = std::min(first + kTileKeys, entry.kv_extent);
  const int64_t dims = job.params.head_dim;
  const int64_t v_dims = job.params.v_head_dim;
  const auto row = [&](const TensorView<const float>& tensor, int64_t key) {
    return tensor.Row(entry.batch, tile.kv_head, entry.kv_begin + key);
  };
  for (int64_t key = first; key < last; key += kPanelKeys) {
    const int64_t keys = std::min(kPanelKeys, last - key);
    if (!job.plan.ScoresDirectly(entry)) {
      PackPanel<AsF32>(row(job.key, key), job.key.strides[2], keys, dims, false,
                       to + layout.key_panels + (key - first) * dims);
    }
    PackPanel<AsF32>(row(job.value, key), job.value.strides[2], keys, v_dims,
                     false, to + layout.value_panels + (key - first) * v_dims);
  }
  PackValueChunk<AsF32>(row(job.key, first), job.key.strides[2], last - first,
                        dims, false, to + layout.key_chunk);
}

void Pack(const BackwardJob& job, int64_t task) {
  const BackwardPlan::Tile tile = job.plan.KeyTile(task);
  const BatchEntry entry = job.problem.mask().Entry(tile.entry);
  if (job.plan.ByParts(entry)) {
    PackKeyParts(job, tile, entry);
  } else {
    PackKeys(job, tile, entry,
             job.packed_keys + job.plan.PackedKeysAt(tile, entry));
  }
}

float Dot(const float* a, const float* b, int64_t dims) {
  Vec sum = hn::Zero(kF);
  int64_t d = 0;
  for (; d + kLanes <= dims; d += kLanes) {
    sum = hn::MulAdd(hn::LoadU(kF, a + d), hn::LoadU(kF, b + d), sum);
  }
  if (d < dims) {
    const auto left = static_cast<size_t>(dims - d);
    sum = hn::MulAdd(LoadFirst<AsF32>(kF, a + d, left),
                     LoadFirst<AsF32>(kF, b + d, left), sum);
  }
  return hn::GetLane(hn::SumOfLanes(kF, sum));
}

void PrepareRows(const BackwardJob& job, int64_t task, float* slot) {
  const BackwardPlan::Tile tile = job.plan.RowTile(task);
  const BatchEntry entry = job.problem.mask().Entry(tile.entry);
  const int64_t first = job.plan.FirstRow(tile, entry);
  const int64_t stride = RoundToLine(job.params.head_dim);
  int64_t rows = 0;
  VisitRows(job, tile, entry, [&](int64_t r, int64_t head, int64_t row) {
    job.deltas[first + r] =
        Dot(job.grad_output.Row(entry.batch, head, row),
            job.output.Row(entry.batch, head, row), job.params.v_head_dim);
    rows = r + 1;
  });
  if (job.plan.ByParts(entry)) {
    PackRowParts(job, tile, entry, slot);
    rows = job.plan.TileRows(entry);
  }
  std::fill_n(job.row_grads + first * stride, rows * stride, 0.0F);
}

void FinishRows(const BackwardJob& job, int64_t task) {
  const BackwardPlan::Tile tile = job.plan.RowTile(task);
  const BatchEntry entry = job.problem.mask().Entry(tile.entry);
  const int64_t dims = job.params.head_dim;
  const float* const from =
      job.row_grads + job.plan.FirstRow(tile, entry) * RoundToLine(dims);
  const bool turned = job.plan.ByParts(entry);
  const int64_t row_step = turned ? 1 : RoundToLine(dims);
  const int64_t dim_step = turned ? job.plan.TileRows(entry) : 1;
  // Scores were made with the query times this, their gradients without.
  const float factor = ScoreScale(job.params).query_factor;
  VisitRows(job, tile, entry, [&](int64_t r, int64_t head, int64_t row) {
    float* to = job.grad_query.Row(entry.batch, head, row);
    for (int64_t d = 0; d < dims; ++d) {
      to[d] = factor * from[r * row_step + d * dim_step];
    }
  });
}

// The first words of a slot: how far its run of tiles of keys is.
struct SlotHeader {
  // Weights of that tile are there, its dQ is not added.
  enum Pending : int64_t { kNothing, kFloats, kParts };

  int64_t next_rows;  // tile of rows; < 0: no run of keys is in progress
  int64_t next_tile;  // of keys
  Pending pending;
};

constexpr SlotHeader kNoRun = {
    .next_rows = -1, .next_tile = 0, .pending = SlotHeader::kNothing};

SlotHeader LoadHeader(const float* slot) {
  SlotHeader header;
  std::memcpy(&header, slot, sizeof(header));
  return header;
}

void StoreHeader(float* slot, const SlotHeader& header) {
  std::memcpy(slot, &header, sizeof(header));
}

// One tile of keys against one tile of rows, by f32 products. Where the tile of
// keys is packed by parts, it is packed anew here.
class TilePair {
 public:
  TilePair(const BackwardJob& job, const BackwardPlan::Tile& key_tile,
           const BatchEntry& entry, int64_t row_tile, float* slot)
      : job_(job),
        params_(job.params),
        entry_(entry),
        row_tile_{key_tile.entry, key_tile.kv_head, row_tile},
        key_tile_(key_tile),
        layout_(job.plan.slot_layout()),
        slot_(slot),
        grads_(TileGrads(job, key_tile, entry, slot)),
        by_parts_(job.plan.ByParts(entry)),
        packed_(by_parts_
                    ? slot + layout_.packed
                    : job.packed_keys + job.plan.PackedKeysAt(key_tile, entry)),
        at_(PackedKeys::Of(job.plan.shape())),
        begin_(key_tile.tile * kTileKeys),
        end_(std::min(begin_ + kTileKeys, entry.kv_len)),
        rows_(job.scores, entry, key_tile.kv_head,
              row_tile * job.plan.TileRows(entry),
              std::min(
                  job.plan.TileRows(entry),
                  job.plan.RowsOf(entry) - row_tile * job.plan.TileRows(entry)),
              reinterpret_cast<uint8_t*>(slot + layout_.visible),
              layout_.visible_stride * 4) {
    seen_ = begin_ < end_ && rows_.LookAt(begin_, end_);
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      whole_ &= block.plain && block.seen.end == end_;
      for (int64_t r = 0; r < block.rows; ++r) block_of_[block.first + r] = b;
    }
  }

  // Whether any row sees any key.
  bool seen() const { return seen_; }

  // Everything but dQ.
  void AddToKeys() {
    if (by_parts_) PackKeys(job_, key_tile_, entry_, packed_);
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

  // dQ += dS K. Needs the weights of AddToKeys in the slot.
  void AddToRows() {
    const int64_t stride = RoundToLine(params_.head_dim);
    float* rows =
        job_.row_grads + job_.plan.FirstRow(row_tile_, entry_) * stride;
    if (by_parts_) {
      rows = slot_ + layout_.query;
      std::fill_n(rows, rows_.rows() * stride, 0.0F);
    }
    const float* const key_chunk = packed_ + at_.key_chunk;
    const bool careful =
        !whole_ && !ChunkIsFinite(key_chunk, params_.head_dim, end_ - begin_);
    VisitColumns(params_.head_dim, [&](int64_t column, int64_t vectors) {
      const float* keys = key_chunk + column * kTileKeys;
      for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
        const Block& block = rows_.block(b);
        if (block.seen.size() == 0) continue;
        const int64_t first = block.seen.begin - begin_;
        const int64_t steps = block.seen.size();
        const float* weights = GradScores(block.first) + first;
        if (!careful) {
          kMicrokernels.value[block.rows - 1][vectors - 1](
              weights, layout_.score_stride, keys + first * vectors * kLanes,
              steps, rows + block.first * stride + column, stride,
              Ahead(slot_, false));
          continue;
        }
        for (int64_t r = 0; r < block.rows; ++r) {
          for (int64_t v = 0; v < vectors; ++v) {
            AddCarefully(
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
    if (by_parts_) AddTurned(rows, stride);
  }

 private:
  // Rows that lie one after the other to those of parts.
  void AddTurned(const float* rows, int64_t stride) const {
    const int64_t tile_rows = job_.plan.TileRows(entry_);
    float* const to =
        job_.row_grads + job_.plan.FirstRow(row_tile_, entry_) * stride;
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

  // Whether row r of the tile sees the tile's key j.
  bool Sees(int64_t r, int64_t j) const {
    const Block& block = rows_.block(block_of_[r]);
    const int64_t key = begin_ + j;
    if (key < block.seen.begin || key >= block.seen.end) return false;
    return block.plain || IsVisible(rows_.Visible(r), j);
  }

  void LoadRows() const {
    const float factor = ScoreScale(params_).query_factor;
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      const auto [head, q_row] = rows_.HeadAndRow(r);
      const int64_t row = entry_.q_begin + q_row;
      ConvertRow<AsF32>(job_.query.Row(entry_.batch, head, row),
                        params_.head_dim, layout_.q_stride, factor, false,
                        Rows(layout_.query, layout_.q_stride, r));
      ConvertRow<AsF32>(job_.grad_output.Row(entry_.batch, head, row),
                        params_.v_head_dim, layout_.v_stride, 1, false,
                        Rows(layout_.grad_output, layout_.v_stride, r));
    }
    PackValueChunk<AsF32>(Rows(layout_.query, layout_.q_stride),
                          layout_.q_stride, rows_.rows(), params_.head_dim,
                          false, slot_ + layout_.query_chunk);
    PackValueChunk<AsF32>(Rows(layout_.grad_output, layout_.v_stride),
                          layout_.v_stride, rows_.rows(), params_.v_head_dim,
                          false, slot_ + layout_.grad_chunk);
  }

  // In the way of the forward pass, so that scores have its bits: P is
  // exp(s - lse), and of large scores the last bit is more than 1.
  void Score() {
    const float* const query = Rows(layout_.query, layout_.q_stride);
    if (!job_.plan.ScoresDirectly(entry_)) {
      Multiply(query, layout_.q_stride, packed_ + at_.key_panels,
               params_.head_dim, slot_ + layout_.weights);
      return;
    }
    DirectTileScores<AsF32>(
        rows_, begin_, query, layout_.q_stride,
        job_.key.Row(entry_.batch, key_tile_.kv_head, entry_.kv_begin + begin_),
        job_.key.strides[2], params_.head_dim, slot_ + layout_.weights,
        layout_.score_stride);
  }

  // products[r][j] = dot(left[r], column j of the panels), where seen.
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
            Ahead(slot_, false));
      }
    }
  }

  void Weigh() const {
    const int64_t first_row = job_.plan.FirstRow(row_tile_, entry_);
    const int64_t keys = end_ - begin_;
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      const auto [head, q_row] = rows_.HeadAndRow(r);
      WeighRow<false>(
          rows_, rows_.block(block_of_[r]), r, params_.bias_dtype, begin_, keys,
          keys, *job_.lse.Row(entry_.batch, head, entry_.q_begin + q_row),
          job_.deltas[first_row + r],
          slot_ + layout_.weights + r * layout_.score_stride, GradScores(r));
    }
  }

  // output[j] += sum over rows of weights[row][j] * right[row].
  void AddTransposed(const float* weights, const float* right, int64_t dims,
                     float* output) const {
    const int64_t stride = RoundToLine(dims);
    const int64_t keys = end_ - begin_;
    const int64_t steps = rows_.rows();
    const bool careful = !whole_ && !ChunkIsFinite(right, dims, steps);
    VisitColumns(dims, [&](int64_t column, int64_t vectors) {
      const float* from = right + column * kKeysPerSum;
      int64_t key = 0;
      for (int64_t left = CeilDiv(keys, static_cast<int64_t>(kRows)); left > 0;
           --left) {
        const int64_t count = CeilDiv(keys - key, left);
        for (int64_t row = 0; !careful && row < steps; row += kRowsPerSum) {
          kMicrokernels.value_transposed[count - 1][vectors - 1](
              weights + row * layout_.score_stride + key, layout_.score_stride,
              from + row * vectors * kLanes, std::min(kRowsPerSum, steps - row),
              output + key * stride + column, stride, Ahead(slot_, false));
        }
        for (int64_t j = key; careful && j < key + count; ++j) {
          for (int64_t v = 0; v < vectors; ++v) {
            for (int64_t row = 0; row < steps; row += kRowsPerSum) {
              AddCarefully(
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

  const BackwardJob& job_;
  const AttentionParams& params_;
  const BatchEntry& entry_;
  const BackwardPlan::Tile row_tile_;
  const BackwardPlan::Tile key_tile_;
  const BackwardLayout& layout_;
  float* const slot_;
  float* const grads_;  // where the slot has the tile's
  const bool by_parts_;
  float* const packed_;  // PackedKeys
  const PackedKeys at_;
  const int64_t begin_;
  const int64_t end_;
  RowTile rows_;
  bool seen_ = false;
  bool whole_ = true;  // every row sees every key
  int64_t block_of_[kMaxTileRows];
};

// Writes a tile's gradients of keys and values.
void FinishKeys(const BackwardJob& job, const BackwardPlan::Tile& tile,
                const BatchEntry& entry, float* slot) {
  const BackwardLayout& layout = job.plan.slot_layout();
  const float* const grads = TileGrads(job, tile, entry, slot);
  const int64_t first = tile.tile * kTileKeys;
  const int64_t last = std::min(first + kTileKeys, entry.kv_extent);
  for (int64_t key = first; key < last; ++key) {
    const int64_t row = entry.kv_begin + key;
    const auto write = [&](const TensorView<float>& to, const float* from,
                           int64_t dims) {
      std::copy_n(from + (key - first) * RoundToLine(dims), dims,
                  to.Row(entry.batch, tile.kv_head, row));
    };
    write(job.grad_key, grads + layout.grad_key, job.params.head_dim);
    write(job.grad_value, grads + layout.grad_value, job.params.v_head_dim);
  }
}

// Waits for the tiles of keys before this one, about as long as a pair of tiles
// takes: coming back later costs the pair's set-up and the scheduler's lock.
// Pausing takes 10 cycles or 140, so patience is a time, not a count.
bool IsTurn(const std::atomic_ref<int32_t>& turn, int32_t mine) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::microseconds kPatience{50};
  const Clock::time_point give_up = Clock::now() + kPatience;
  while (turn.load(std::memory_order_acquire) != mine) {
    hwy::Pause();
    if (Clock::now() >= give_up) return false;
  }
  return true;
}

// Takes a tile of rows in to a tile of keys, and the other way round when it is
// its turn. False where that is not yet: `pending` is what is left then.
bool Absorb(const BackwardJob& job, const BackwardPlan::Tile& tile,
            const BatchEntry& entry, int64_t row_tile,
            SlotHeader::Pending& pending, float* slot) {
  std::optional<PartsPair> parts;
  std::optional<TilePair> floats;
  const int64_t begin = tile.tile * kTileKeys;
  if (!MaySee(job, entry, row_tile, begin, begin + kTileKeys)) {
    // Nothing to add, but its turn must pass.
  } else if (job.plan.ByParts(entry) && pending != SlotHeader::kFloats) {
    parts.emplace(job, tile, entry, row_tile, slot);
  } else {
    floats.emplace(job, tile, entry, row_tile, slot);
  }
  if (pending == SlotHeader::kNothing) {
    if (parts && parts->seen()) {
      pending = SlotHeader::kParts;
      if (!parts->AddToKeys()) floats.emplace(job, tile, entry, row_tile, slot);
    }
    if (floats && floats->seen()) {
      pending = SlotHeader::kFloats;
      floats->AddToKeys();
    }
  }
  const std::atomic_ref<int32_t> turn(job.turns[job.plan.RowTileIndex(
      {tile.entry, tile.kv_head, row_tile}, entry)]);
  if (!IsTurn(turn, static_cast<int32_t>(tile.tile))) return false;
  if (pending == SlotHeader::kParts) parts->AddToRows();
  if (pending == SlotHeader::kFloats) floats->AddToRows();
  pending = SlotHeader::kNothing;
  turn.store(static_cast<int32_t>(tile.tile) + 1, std::memory_order_release);
  return true;
}

TileJob::Slice RunTiles(const BackwardJob& job, int64_t task, float* slot,
                        SliceControl& control) {
  BackwardPlan::Tile tile = job.plan.KeyRun(task);
  const BatchEntry entry = job.problem.mask().Entry(tile.entry);
  std::optional<AmxTiles> amx;
  if (job.plan.ByParts(entry)) amx.emplace();
  const int64_t row_tiles = job.plan.RowTilesOf(entry);
  const int64_t first = tile.tile * job.plan.KeyTilesPerRun(entry);
  const int64_t last = std::min(first + job.plan.KeyTilesPerRun(entry),
                                job.plan.KeyTilesOf(entry));
  SlotHeader header = LoadHeader(slot);
  if (header.next_rows < 0) {
    const BackwardLayout& layout = job.plan.slot_layout();
    std::fill_n(slot + layout.grad_key, (last - first) * layout.grad_words,
                0.0F);
    header = {
        .next_rows = 0, .next_tile = first, .pending = SlotHeader::kNothing};
  }
  while (header.next_rows < row_tiles) {
    tile.tile = header.next_tile;
    if (!Absorb(job, tile, entry, header.next_rows, header.pending, slot)) {
      if (control.ShouldStop()) return TileJob::Slice::kDone;
      StoreHeader(slot, header);
      return TileJob::Slice::kYield;
    }
    if (++header.next_tile == last) {
      header.next_tile = first;
      if (++header.next_rows == row_tiles) break;
    }
    if (control.ShouldStop()) return TileJob::Slice::kDone;
    if (control.ShouldYield()) {
      StoreHeader(slot, header);
      return TileJob::Slice::kYield;
    }
  }
  for (tile.tile = first; tile.tile < last; ++tile.tile) {
    FinishKeys(job, tile, entry, slot);
  }
  StoreHeader(slot, kNoRun);
  return TileJob::Slice::kDone;
}

}  // namespace

const BackwardKernel& Backward() {
  static constexpr BackwardKernel kKernel = {&Pack, &PrepareRows, &RunTiles,
                                             &FinishRows};
  return kKernel;
}

void ClearSlot(float* slot) { StoreHeader(slot, kNoRun); }

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnd {

const BackwardKernel& GetBackwardKernel(Isa isa) {
  return ATTND_FUNCTION(isa, Backward)();
}

BackwardJob::BackwardJob(const AttentionProblem& of_problem,
                         const BackwardPlan& of_plan,
                         const BackwardBuffers& buffers, int64_t slots,
                         std::byte* workspace)
    : problem(of_problem),
      params(of_problem.params()),
      plan(of_plan),
      scores(of_problem, buffers.bias, buffers.mask),
      query(problem.QueryView(buffers.query)),
      key(problem.KeyView(buffers.key)),
      value(problem.ValueView(buffers.value)),
      output(problem.OutputView(buffers.output)),
      grad_output(problem.OutputView(buffers.grad_output)),
      lse(problem.LseView(buffers.lse)),
      grad_query(problem.QueryView(buffers.grad_query)),
      grad_key(problem.KeyView(buffers.grad_key)),
      grad_value(problem.ValueView(buffers.grad_value)) {
  const auto take = [&workspace](int64_t size_bytes) {
    std::byte* const part = workspace;
    workspace += size_bytes;
    return part;
  };
  packed_keys = reinterpret_cast<float*>(take(plan.packed_keys_bytes()));
  packed_rows = reinterpret_cast<float*>(take(plan.packed_rows_bytes()));
  row_grads = reinterpret_cast<float*>(take(plan.rows_bytes()));
  deltas = reinterpret_cast<float*>(take(plan.deltas_bytes()));
  turns = reinterpret_cast<int32_t*>(take(plan.turns_bytes()));
  slot_memory = workspace;
  std::fill_n(turns, plan.row_tiles(), 0);
  for (int64_t slot = 0; slot < slots; ++slot) {
    HWY_STATIC_DISPATCH(ClearSlot)(Slot(slot));
  }
}

}  // namespace attnd
#endif  // HWY_ONCE
