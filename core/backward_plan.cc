#include "core/backward_plan.h"

#include <algorithm>
#include <vector>

#include "base/checked_math.h"
#include "core/kernel_plan.h"
#include "core/workspace.h"

namespace attnd {
namespace {

// From this number of tiles of keys on, two tiles share the rows that they
// read, because rows come from the third-level cache then. With fewer tiles
// there would be too few tasks.
constexpr int64_t kMinTilesOfRuns = 16;

}  // namespace

BackwardPlan::BackwardPlan(const AttentionProblem& problem,
                           const MachineInfo& machine)
    : tiled_kind_(TiledKind(problem.params(), machine) == TileKind::kAmxBf16x3
                      ? BackwardKind::kBf16x3
                      : BackwardKind::kPanel),
      max_direct_rows_(MaxDirectRows(problem.params(), machine)),
      isa_(F32Isa(machine.isa)),
      kv_heads_(problem.params().num_kv_heads),
      group_(problem.params().HeadsPerGroup()),
      shape_{.tile_q = TraitsOf(BackwardKind::kPanel).tile_rows,
             .tile_kv = kTileKeys,
             .head_dim = problem.params().head_dim,
             .v_head_dim = problem.params().v_head_dim,
             .converts_values = false,
             .kind = TileKind::kPanel} {
  const AttentionParams& params = problem.params();
  const Visibility& visibility = problem.visibility();
  int64_t key_tiles_of_run = 1;
  const auto counts_of = [&](const BatchEntry& entry) {
    EntryTable<kKinds>::Counts counts{};
    counts[kKeyTile] = kv_heads_ * KeyTilesOf(entry);
    const int64_t per_run = KeyTilesPerRun(entry);
    counts[kKeyRun] = kv_heads_ * CeilDiv(KeyTilesOf(entry), per_run);
    key_tiles_of_run = std::max(key_tiles_of_run, per_run);
    counts[kRowTile] = kv_heads_ * RowTilesOf(entry);
    counts[kRow] = kv_heads_ * RowsInMemory(entry);
    if (KindOf(entry) == BackwardKind::kBf16x3) {
      counts[kBf16x3KeyTile] = counts[kKeyTile];
      counts[kBf16x3RowTile] = counts[kRowTile];
    }
    return counts;
  };
  bool overflow = false;
  if (visibility.uniform()) {
    if (params.batch > 0) {
      const EntryTable<kKinds>::Counts counts = counts_of(visibility.Entry(0));
      // The rows of all entries fit an int64 because the tensors do. The
      // numbers of tiles may not fit, because a short sequence takes a whole
      // tile.
      overflow = !CheckedProduct({params.batch, counts[kKeyTile], kTileKeys}) ||
                 !CheckedProduct({params.batch, counts[kRowTile]}) ||
                 !CheckedProduct({params.batch, counts[kRow]});
      if (!overflow) table_ = EntryTable<kKinds>(params.batch, counts);
    }
  } else {
    std::vector<EntryTable<kKinds>::Counts> counts;
    std::vector<int64_t> work;
    for (int64_t b = 0; b < params.batch; ++b) {
      const BatchEntry entry = visibility.Entry(b);
      counts.push_back(counts_of(entry));
      work.push_back(entry.VisiblePairs());
    }
    table_ = EntryTable<kKinds>(counts, work);
  }
  const int64_t bf16x3_key_tiles = table_.Total(kBf16x3KeyTile);
  const int64_t bf16x3_row_tiles = table_.Total(kBf16x3RowTile);
  if (bf16x3_row_tiles > 0) {
    isa_ = machine.isa;
    variant_ = TraitsOf(BackwardKind::kBf16x3).name;
    shape_.kind = TileKind::kAmxBf16x3;
    shape_.tile_q = TraitsOf(BackwardKind::kBf16x3).tile_rows;
  }
  const auto bytes = [overflow](int64_t count, int64_t words) {
    return overflow
               ? kMaxBytes
               : AlignedBytes(SaturatingProduct({kWordBytes, count, words}));
  };
  packed_keys_bytes_ = AlignedBytes(SaturatingSum(
      {bytes(key_tiles() - bf16x3_key_tiles, PackedKeys::Of(shape_).total),
       bytes(bf16x3_key_tiles, PackedKeysBf16x3::Of(shape_).total)}));
  packed_rows_bytes_ =
      bytes(bf16x3_row_tiles, PackedRowsBf16x3::Of(shape_).total);
  rows_bytes_ = bytes(table_.Total(kRow), RoundToLine(params.head_dim));
  deltas_bytes_ = bytes(table_.Total(kRow), 1);
  turns_bytes_ = bytes(table_.Total(kRowTile), 1);
  slot_layout_ = BackwardLayout::Of(GeometryOf(isa_), shape_, key_tiles_of_run);
}

BackwardKind BackwardPlan::KindOf(const BatchEntry& entry) const {
  // Rows of padding get gradients, too, but do not count here, so that they
  // cannot change how other rows are computed.
  return group_ * entry.q_seeing <= max_direct_rows_ ? BackwardKind::kDirect
                                                     : tiled_kind_;
}

int64_t BackwardPlan::TileRows(const BatchEntry& entry) const {
  return TraitsOf(KindOf(entry)).tile_rows;
}

int64_t BackwardPlan::KeyTilesOf(const BatchEntry& entry) const {
  // Keys after the entry's length get a gradient, too, which is 0.
  return CeilDiv(entry.kv_extent, kTileKeys);
}

int64_t BackwardPlan::KeyTilesPerRun(const BatchEntry& entry) const {
  return KeyTilesOf(entry) >= kMinTilesOfRuns
             ? TraitsOf(KindOf(entry)).key_tiles_of_long_run
             : 1;
}

int64_t BackwardPlan::RowsOf(const BatchEntry& entry) const {
  return group_ * entry.q_len;
}

int64_t BackwardPlan::RowTilesOf(const BatchEntry& entry) const {
  return CeilDiv(RowsOf(entry), TileRows(entry));
}

int64_t BackwardPlan::RowsInMemory(const BatchEntry& entry) const {
  return KindOf(entry) == BackwardKind::kBf16x3
             ? RowTilesOf(entry) * TileRows(entry)
             : RowsOf(entry);
}

BackwardPlan::Tile BackwardPlan::Locate(Kind kind, int64_t task) const {
  const auto [entry, index] = table_.Locate(kind, task);
  // Consecutive tasks belong to different kv heads, so that they need not wait
  // for one another.
  return {
      .entry = entry, .kv_head = index % kv_heads_, .tile = index / kv_heads_};
}

int64_t BackwardPlan::PackedKeysAt(const Tile& tile,
                                   const BatchEntry& entry) const {
  const int64_t before = table_.First(kKeyTile, tile.entry);
  const int64_t bf16x3_before = table_.First(kBf16x3KeyTile, tile.entry);
  const int64_t index = tile.kv_head * KeyTilesOf(entry) + tile.tile;
  const int64_t f32_words = PackedKeys::Of(shape_).total;
  const int64_t bf16x3_words = PackedKeysBf16x3::Of(shape_).total;
  const bool bf16x3 = KindOf(entry) == BackwardKind::kBf16x3;
  return (before - bf16x3_before) * f32_words + bf16x3_before * bf16x3_words +
         index * (bf16x3 ? bf16x3_words : f32_words);
}

int64_t BackwardPlan::PackedRowsAt(const Tile& tile,
                                   const BatchEntry& entry) const {
  return (table_.First(kBf16x3RowTile, tile.entry) +
          tile.kv_head * RowTilesOf(entry) + tile.tile) *
         PackedRowsBf16x3::Of(shape_).total;
}

int64_t BackwardPlan::FirstRow(const Tile& tile,
                               const BatchEntry& entry) const {
  return table_.First(kRow, tile.entry) + tile.kv_head * RowsInMemory(entry) +
         tile.tile * TileRows(entry);
}

int64_t BackwardPlan::RowTileIndex(const Tile& tile,
                                   const BatchEntry& entry) const {
  return table_.First(kRowTile, tile.entry) + tile.kv_head * RowTilesOf(entry) +
         tile.tile;
}

int64_t BackwardPlan::Slots(int64_t threads) const {
  return std::max<int64_t>(1, std::min(threads, key_runs()));
}

int64_t BackwardPlan::WorkspaceBytes(int64_t threads) const {
  return SaturatingSum({packed_keys_bytes_, packed_rows_bytes_, rows_bytes_,
                        deltas_bytes_, turns_bytes_,
                        SaturatingProduct({Slots(threads), slot_bytes()})});
}

}  // namespace attnd
