// Chooses how a problem will be computed: by which kernel, cut into which
// tiles. The choice depends on numbers alone, so that a table can test it.
#ifndef ATTND_CORE_KERNEL_PLAN_H_
#define ATTND_CORE_KERNEL_PLAN_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/attention_problem.h"
#include "core/entry_table.h"
#include "core/geometry.h"
#include "core/machine.h"

namespace attnd {

// The plan of one batch entry. It depends on the entry's lengths, dims, types
// and options and on the machine, but never on workers, batch or load, so that
// the same request gives the same bits whatever else runs.
struct EntryPlan {
  TileKind kind = TileKind::kDirect;
  int64_t kv_len = 0;
  // Query rows in a tile. The heads of a GQA group that share a kv head are
  // rows of one matrix, so a tile may hold rows of several heads. No tile holds
  // rows of padding.
  int64_t tile_q = 1;
  int64_t q_tiles = 0;  // of one kv head
  // The number of pieces that a tile's keys are cut into. Each is a task, and
  // their partial results are merged in order.
  int64_t splits = 1;
  // Keys of one kv head that are packed, in whole sums; 0 if kind is direct.
  int64_t packed_keys = 0;
  int64_t padding_rows = 0;  // of all query heads; they see nothing

  friend bool operator==(const EntryPlan&, const EntryPlan&) = default;
};

// Keys first <= j < last of one kv head of one entry, to be packed.
struct PackTask {
  int64_t entry, kv_head, first, last;
};

// One tile, or one split of it.
struct TileTask {
  int64_t entry, kv_head, tile, split;
};

// Rows of padding first <= r < last of one entry. The rows of a query head
// follow those of the head before it.
struct PaddingTask {
  int64_t entry, first, last;
};

// Immutable once made.
class KernelPlan {
 public:
  // Keys that one packing task takes: whole panels and whole sums.
  static constexpr int64_t kKeysPerPackTask = 512;
  // Keys of a split: a whole number of tiles, whatever the plan.
  static constexpr int64_t kKeysPerSplit = 4096;

  Isa isa = Isa::kScalar;  // the set that the products run on
  // The kind of all entries that are not direct; a direct kind if there are
  // none.
  TileKind tiled_kind = TileKind::kDirect;
  std::string_view variant = "tiled";  // the kernel's name in ExecutionStats
  bool any_direct = false;             // entries
  // Whether direct tiles copy values to the slot, converted or in whole
  // vectors.
  bool converts_values = false;
  int64_t tile_q = 0;      // the largest of any entry
  int64_t tile_kv = 0;     // keys in a tile
  int64_t tile_tasks = 0;  // this and the numbers below: of the whole job
  int64_t merge_tasks = 0;
  int64_t padding_tasks = 0;
  // The packed keys of the longest kv head, and its place in memory: a line for
  // the place itself, keys and values.
  int64_t packed_keys_bytes = 0;
  int64_t packed_head_bytes = 0;
  int64_t partial_bytes = 0;
  int64_t packing_bytes = 0;  // how far kv heads are packed
  SlotLayout slot_layout{};   // of one tile in progress
  int64_t slot_bytes = 0;

  // What a task number stands for: `task` is below tile_tasks, merge_tasks or
  // padding_tasks. Tiles of the heaviest entries come first, and within a kv
  // head those that see most. A merge is of a whole tile, so its split is 0.
  TileTask Tile(int64_t task) const;
  TileTask Merge(int64_t task) const;
  PaddingTask Padding(int64_t task) const;

  // The number of pieces in which the keys of one kv head are packed, whichever
  // tile comes first. 0 if they are not packed.
  int64_t PackTasks(int64_t entry) const;
  PackTask Pack(int64_t entry, int64_t kv_head, int64_t piece) const;

  const EntryPlan& Entry(int64_t entry) const {
    return entries_[uniform_ ? 0 : static_cast<size_t>(entry)];
  }
  // The tiles of one kv head of an entry. Each split counts.
  int64_t TilesOfHead(int64_t entry) const {
    return Entry(entry).q_tiles * Entry(entry).splits;
  }
  // The most kv heads that are packed at the same time while at most `threads`
  // tiles are in progress. Tasks start in order. So of the heads that were
  // begun and not finished, only the last may be without a tile in progress,
  // and then the worker that ran its latest tile has no task.
  int64_t PackedHeads(int64_t threads) const;
  // Where the partial results of a split are, in words, and their layout.
  int64_t PartialAt(const TileTask& task) const;
  PartialLayout PartialOf(int64_t entry) const {
    return PartialLayout::Of(Entry(entry).tile_q, v_head_dim_);
  }

  // The most tiles that `threads` workers may have in progress; at least 1.
  int64_t Slots(int64_t threads) const;

  // The bytes that the job holds beside inputs and outputs while at most
  // `threads` of its tiles are in progress.
  int64_t WorkspaceBytes(int64_t threads) const;

 private:
  friend KernelPlan MakeKernelPlan(const AttentionProblem& problem,
                                   const MachineInfo& machine);

  enum Kind : size_t {
    kTile,
    kMerge,
    kPadding,
    kPackedHead,
    kPartialWord,
    kKinds
  };
  using Table = EntryTable<kKinds>;

  Table::Counts CountsOf(const EntryPlan& entry, int64_t kv_heads) const;

  int64_t v_head_dim_ = 0;
  int64_t rows_per_padding_task_ = 1;
  bool uniform_ = true;
  std::vector<EntryPlan> entries_;  // one for all where uniform
  Table table_;
};

// The kind of entries that have too many rows to be direct.
TileKind TiledKind(const AttentionParams& params, const MachineInfo& machine);

// The largest number of rows that see something, of the heads that share a kv
// head, for which an entry is direct. -1 if keys are packed whatever the rows.
int64_t MaxDirectRows(const AttentionParams& params,
                      const MachineInfo& machine);

// Returns the part of one entry.
EntryPlan PlanEntry(const AttentionParams& params, const BatchEntry& entry,
                    const MachineInfo& machine);

// Byte counts saturate at the largest int64 instead of overflowing.
KernelPlan MakeKernelPlan(const AttentionProblem& problem,
                          const MachineInfo& machine);

}  // namespace attnd

#endif  // ATTND_CORE_KERNEL_PLAN_H_
