// Chooses how the gradients of a problem are computed: into which tiles the
// work is cut, and how many bytes of memory it takes. KernelPlan does the same
// for the forward pass.
#ifndef ATTND_CORE_BACKWARD_PLAN_H_
#define ATTND_CORE_BACKWARD_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/attention_problem.h"
#include "core/entry_table.h"
#include "core/geometry.h"
#include "core/machine.h"

namespace attnd {

// The plan of one backward job. Immutable once made. The tiles of a batch entry
// depend on nothing but that entry and the machine, so the same request gives
// the same bits whatever else runs at the same time.
class BackwardPlan {
 public:
  // The number of keys in a tile. The gradients of their K and V stay in the
  // second-level cache while all query rows are processed.
  static constexpr int64_t kTileKeys = 128;

  // A tile of keys of a kv head, or a tile of the query rows that share it.
  // `tile` is its number, from 0 within the kv head.
  struct Tile {
    int64_t entry, kv_head, tile;
  };

  // Plans the gradients of `problem`. Byte counts saturate at the largest int64
  // instead of overflowing.
  BackwardPlan(const AttentionProblem& problem, const MachineInfo& machine);

  // The instruction set that computes the products.
  Isa isa() const { return isa_; }
  // The kernel's name in ExecutionStats.
  std::string_view variant() const { return variant_; }
  BackwardKind KindOf(const BatchEntry& entry) const;
  // The kind of all entries that have more than a few rows.
  BackwardKind tiled_kind() const { return tiled_kind_; }
  // TileRows returns the number of query rows in a tile of `entry`, and
  // tile_rows the largest such number of all entries.
  int64_t TileRows(const BatchEntry& entry) const;
  int64_t tile_rows() const { return shape_.tile_q; }
  // The shape that a slot and the packed tiles are laid out for.
  const SlotLayout::Shape& shape() const { return shape_; }
  const BackwardLayout& slot_layout() const { return slot_layout_; }

  // Counts for the whole job. A key run is a group of consecutive key tiles
  // that one task processes together. The runs of a kv head are numbered in key
  // order.
  int64_t key_tiles() const { return table_.Total(kKeyTile); }
  int64_t key_runs() const { return table_.Total(kKeyRun); }
  int64_t row_tiles() const { return table_.Total(kRowTile); }
  Tile KeyTile(int64_t task) const { return Locate(kKeyTile, task); }
  // Returns a Tile whose `tile` is the number of the run.
  Tile KeyRun(int64_t task) const { return Locate(kKeyRun, task); }
  Tile RowTile(int64_t task) const { return Locate(kRowTile, task); }

  // Return counts for one kv head of `entry`.
  int64_t KeyTilesOf(const BatchEntry& entry) const;
  int64_t KeyTilesPerRun(const BatchEntry& entry) const;
  int64_t RowTilesOf(const BatchEntry& entry) const;
  int64_t RowsOf(const BatchEntry& entry) const;

  // Return where the packed copy of a tile begins, in words of 4 bytes from the
  // start of the memory for such copies. Tiles of query rows have a copy only
  // in entries of kind kBf16x3.
  int64_t PackedKeysAt(const Tile& tile, const BatchEntry& entry) const;
  int64_t PackedRowsAt(const Tile& tile, const BatchEntry& entry) const;
  // FirstRow returns how many rows of the query's gradient lie in memory before
  // those of a tile of query rows. In entries of kind kBf16x3 even a tile with
  // fewer rows takes the space of a whole tile. RowTileIndex returns the number
  // of the tile among the tiles of query rows of the whole job.
  int64_t FirstRow(const Tile& tile, const BatchEntry& entry) const;
  int64_t RowTileIndex(const Tile& tile, const BatchEntry& entry) const;

  int64_t packed_keys_bytes() const { return packed_keys_bytes_; }
  int64_t packed_rows_bytes() const { return packed_rows_bytes_; }
  int64_t rows_bytes() const { return rows_bytes_; }  // the query's gradient
  // One float for each query row, and one counter for each tile of query rows.
  int64_t deltas_bytes() const { return deltas_bytes_; }
  int64_t turns_bytes() const { return turns_bytes_; }
  int64_t slot_bytes() const { return kWordBytes * slot_layout_.total; }

  // Returns how many key runs may be in progress with `threads` workers; at
  // least 1.
  int64_t Slots(int64_t threads) const;
  // Returns the bytes that the job needs in addition to inputs and outputs.
  int64_t WorkspaceBytes(int64_t threads) const;

 private:
  enum Kind : size_t {
    kKeyTile,
    kKeyRun,
    kRowTile,
    kRow,
    kBf16x3KeyTile,
    kBf16x3RowTile,
    kKinds
  };

  Tile Locate(Kind kind, int64_t task) const;
  int64_t RowsInMemory(const BatchEntry& entry) const;

  BackwardKind tiled_kind_;  // of entries with more rows than max_direct_rows_
  int64_t max_direct_rows_;
  std::string_view variant_ = TraitsOf(BackwardKind::kPanel).name;
  Isa isa_;
  int64_t kv_heads_;
  int64_t group_;
  SlotLayout::Shape shape_;
  BackwardLayout slot_layout_{};
  int64_t packed_keys_bytes_ = 0;
  int64_t packed_rows_bytes_ = 0;
  int64_t rows_bytes_ = 0;
  int64_t deltas_bytes_ = 0;
  int64_t turns_bytes_ = 0;
  EntryTable<kKinds> table_;
};

}  // namespace attnd

#endif  // ATTND_CORE_BACKWARD_PLAN_H_
