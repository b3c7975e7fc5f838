// Chooses how a problem is computed: with which kernel, and in which tiles. The
// choice depends on numbers alone, so a test can compare it with a table.
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
  // The number of query rows in a tile. The heads of a GQA group that share a
  // kv head are rows of one matrix, so a tile may hold rows of several heads.
  // No tile holds rows of padding.
  int64_t tile_q = 1;
  int64_t q_tiles = 0;  // of one kv head
  // The number of splits, which are pieces that a tile's keys are cut into.
  // Each is a task, and their partial results are merged in order.
  int64_t splits = 1;
  // The number of keys of one kv head that are packed, rounded up to a multiple
  // of kKeysPerSum; 0 if kind is direct.
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

// Rows of padding first <= r < last of one entry, counted through all query
// heads: the rows of a head follow those of the head before it.
struct PaddingTask {
  int64_t entry, first, last;
};

// The plan of one forward job. Immutable once made.
class KernelPlan {
 public:
  // The number of keys that one packing task packs: a multiple of kKeysPerSum
  // and of the keys of a panel.
  static constexpr int64_t kKeysPerPackTask = 512;
  // The number of keys in a split. It is a multiple of tile_kv in every plan.
  static constexpr int64_t kKeysPerSplit = 4096;

  Isa isa = Isa::kScalar;  // the set that computes the products
  // The kind of all entries that are not direct; a direct kind if there are
  // none.
  TileKind tiled_kind = TileKind::kDirect;
  std::string_view variant = "tiled";  // the kernel's name in ExecutionStats
  bool any_direct = false;             // whether any entry is direct
  // Whether direct tiles copy values to the slot, because values must be
  // converted or padded to whole vectors.
  bool converts_values = false;
  int64_t tile_q = 0;   // the largest of any entry
  int64_t tile_kv = 0;  // keys in a tile
  // The numbers of tasks in the whole job.
  int64_t tile_tasks = 0;
  int64_t merge_tasks = 0;
  int64_t padding_tasks = 0;
  // The bytes of the packed keys of the longest kv head, and of a place for it
  // in memory. A place has a cache line that says whether it is taken, then
  // keys, then values.
  int64_t packed_keys_bytes = 0;
  int64_t packed_head_bytes = 0;
  int64_t partial_bytes = 0;
  int64_t packing_bytes = 0;  // of the HeadPacking of all kv heads
  SlotLayout slot_layout{};   // of one tile in progress
  int64_t slot_bytes = 0;

  // Return what task number `task` stands for. `task` is below tile_tasks,
  // merge_tasks or padding_tasks. Tiles of the entries with most work come
  // first, and within a kv head those that see most keys. A merge is of a whole
  // tile, so its split is 0.
  TileTask Tile(int64_t task) const;
  TileTask Merge(int64_t task) const;
  PaddingTask Padding(int64_t task) const;

  // Returns the number of pieces in which the keys of one kv head are packed,
  // or 0 if they are not packed. The pieces are the same whichever tile packs
  // them.
  int64_t PackTasks(int64_t entry) const;
  PackTask Pack(int64_t entry, int64_t kv_head, int64_t piece) const;

  const EntryPlan& Entry(int64_t entry) const {
    return entries_[uniform_ ? 0 : static_cast<size_t>(entry)];
  }
  // Returns the number of tiles of one kv head of an entry. Each split counts.
  int64_t TilesOfHead(int64_t entry) const {
    return Entry(entry).q_tiles * Entry(entry).splits;
  }
  // Returns how many kv heads need a place at the same time while at most
  // `threads` tiles are in progress. This is never more than Slots(threads),
  // because tasks start in order: among the heads that have begun and are not
  // finished, only the last may be without a tile in progress, and then the
  // worker that ran its latest tile has no task.
  int64_t PackedHeads(int64_t threads) const;
  // Return where the partial result of a split begins, in words, and its
  // layout.
  int64_t PartialAt(const TileTask& task) const;
  PartialLayout PartialOf(int64_t entry) const {
    return PartialLayout::Of(Entry(entry).tile_q, v_head_dim_);
  }

  // Returns how many tiles may be in progress with `threads` workers; at least
  // 1.
  int64_t Slots(int64_t threads) const;

  // Returns the bytes that the job needs in addition to inputs and outputs
  // while at most `threads` of its tiles are in progress.
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
  std::vector<EntryPlan> entries_;  // only one if uniform_
  Table table_;
};

// Returns the kind of the entries that have too many rows to be direct.
TileKind TiledKind(const AttentionParams& params, const MachineInfo& machine);

// Returns the largest number of rows with which an entry is direct, or -1 if
// keys are always packed. Of the rows of all heads that share a kv head, only
// those that see a key count.
int64_t MaxDirectRows(const AttentionParams& params,
                      const MachineInfo& machine);

// Returns the plan of one entry.
EntryPlan PlanEntry(const AttentionParams& params, const BatchEntry& entry,
                    const MachineInfo& machine);

// Returns the plan of `problem`. Byte counts saturate at the largest int64
// instead of overflowing.
KernelPlan MakeKernelPlan(const AttentionProblem& problem,
                          const MachineInfo& machine);

}  // namespace attnd

#endif  // ATTND_CORE_KERNEL_PLAN_H_
