#include "core/backward_plan.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "core/checked_math.h"
#include "core/kernels/geometry.h"
#include "core/workspace.h"

namespace attnd {
namespace {

constexpr int64_t kWordBytes = 4;
constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max();

int64_t Saturated(const std::optional<int64_t>& bytes) {
  return bytes && *bytes < kMaxBytes - Workspace::kAlignment
             ? RoundUp(*bytes, Workspace::kAlignment)
             : kMaxBytes;
}

}  // namespace

BackwardPlan::BackwardPlan(const AttentionProblem& problem,
                           const MachineInfo& machine)
    : isa_(F32Isa(machine.isa)),
      kv_heads_(problem.params().num_kv_heads),
      group_(problem.params().HeadsPerGroup()) {
  const AttentionParams& params = problem.params();
  const Mask& mask = problem.mask();
  const auto counts_of = [&](const BatchEntry& entry) {
    EntryTable<kKinds>::Counts counts{};
    counts[kKeyTile] = kv_heads_ * KeyTilesOf(entry);
    counts[kRowTile] = kv_heads_ * RowTilesOf(entry);
    counts[kRow] = kv_heads_ * RowsOf(entry);
    return counts;
  };
  bool overflow = false;
  if (mask.uniform()) {
    if (params.batch > 0) {
      const EntryTable<kKinds>::Counts counts = counts_of(mask.Entry(0));
      // Rows fit, as a tensor's do; of short sequences the tiles might not.
      overflow = !CheckedProduct({params.batch, counts[kKeyTile], kTileKeys}) ||
                 !CheckedProduct({params.batch, counts[kRowTile]});
      if (!overflow) table_ = EntryTable<kKinds>(params.batch, counts);
    }
  } else {
    std::vector<EntryTable<kKinds>::Counts> counts;
    std::vector<int64_t> work;
    for (int64_t b = 0; b < params.batch; ++b) {
      const BatchEntry entry = mask.Entry(b);
      counts.push_back(counts_of(entry));
      work.push_back(entry.VisiblePairs());
    }
    table_ = EntryTable<kKinds>(counts, work);
  }
  const auto bytes = [overflow](int64_t count, int64_t words) {
    return overflow ? kMaxBytes
                    : Saturated(CheckedProduct({kWordBytes, count, words}));
  };
  const int64_t head = RoundToLine(params.head_dim);
  packed_bytes_ = bytes(key_tiles() * kTileKeys,
                        params.head_dim + params.v_head_dim + head);
  rows_bytes_ = bytes(table_.Total(kRow), head);
  deltas_bytes_ = bytes(table_.Total(kRow), 1);
  turns_bytes_ = bytes(table_.Total(kRowTile), 1);
  slot_bytes_ =
      kWordBytes *
      BackwardLayout::Of(GeometryOf(isa_), {.tile_q = kTileRows,
                                            .tile_kv = kTileKeys,
                                            .head_dim = params.head_dim,
                                            .v_head_dim = params.v_head_dim,
                                            .converts_values = false})
          .total;
}

int64_t BackwardPlan::KeyTilesOf(const BatchEntry& entry) const {
  // Keys behind a length get a gradient too: 0.
  return CeilDiv(entry.kv_extent, kTileKeys);
}

int64_t BackwardPlan::RowsOf(const BatchEntry& entry) const {
  return group_ * entry.q_len;
}

int64_t BackwardPlan::RowTilesOf(const BatchEntry& entry) const {
  return CeilDiv(RowsOf(entry), kTileRows);
}

BackwardPlan::Tile BackwardPlan::KeyTile(int64_t task) const {
  const auto [entry, index] = table_.Locate(kKeyTile, task);
  // Neighbours are of different kv heads: they need not wait for one another.
  return {
      .entry = entry, .kv_head = index % kv_heads_, .tile = index / kv_heads_};
}

BackwardPlan::Tile BackwardPlan::RowTile(int64_t task) const {
  const auto [entry, index] = table_.Locate(kRowTile, task);
  return {
      .entry = entry, .kv_head = index % kv_heads_, .tile = index / kv_heads_};
}

int64_t BackwardPlan::FirstKey(const Tile& tile,
                               const BatchEntry& entry) const {
  return (table_.First(kKeyTile, tile.entry) +
          tile.kv_head * KeyTilesOf(entry) + tile.tile) *
         kTileKeys;
}

int64_t BackwardPlan::FirstRow(const Tile& tile,
                               const BatchEntry& entry) const {
  return table_.First(kRow, tile.entry) + tile.kv_head * RowsOf(entry) +
         tile.tile * kTileRows;
}

int64_t BackwardPlan::RowTileIndex(const Tile& tile,
                                   const BatchEntry& entry) const {
  return table_.First(kRowTile, tile.entry) + tile.kv_head * RowTilesOf(entry) +
         tile.tile;
}

int64_t BackwardPlan::Slots(int64_t threads) const {
  return std::max<int64_t>(1, std::min(threads, key_tiles()));
}

int64_t BackwardPlan::WorkspaceBytes(int64_t threads) const {
  const auto slots = CheckedProduct({Slots(threads), slot_bytes_});
  const auto total = slots ? CheckedSum({packed_bytes_, rows_bytes_,
                                         deltas_bytes_, turns_bytes_, *slots})
                           : std::nullopt;
  return total.value_or(kMaxBytes);
}

}  // namespace attnd
