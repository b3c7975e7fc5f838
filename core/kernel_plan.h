// Chooses how a problem is computed: with which kernel, and in which tiles. The
// choice needs only shapes, options and facts about the machine, no elements
// and no threads, so a test can compare it with a table.
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

// The plan of one batch entry. It depends on the entry's lengths, head
// dimensions, types and options and on the machine. It never depends on the
// number of workers, on other entries or on load, so that the same request
// always gives the same bits.
struct EntryPlan {
  TileKind kind = TileKind::kDirect;
  int64_t kv_len = 0;
  // The number of query rows in a tile. The query heads that share a kv head
  // are computed as one matrix, so a tile may hold rows of several heads. No
  // tile holds padding rows.
  int64_t tile_q = 1;
  int64_t q_tiles = 0;  // of one kv head
  // How many pieces (splits) the keys of a tile are cut into. Each split is a
  // task of its own, and the partial results of the splits are merged in order.
  int64_t splits = 1;
  // The number of keys of one kv head that are packed (copied in the order in
  // which kernels read them), rounded up to a multiple of kKeysPerSum. 0 if
  // `kind` is direct.
  int64_t packed_keys = 0;
  int64_t padding_rows = 0;  // of all query heads; they see nothing

  friend bool operator==(const EntryPlan&, const EntryPlan&) = default;
};

// The keys first <= j < last of one kv head of one batch entry, which are
// packed together.
struct PackTask {
  int64_t entry, kv_head, first, last;
};

// One tile of query rows, or one split of its keys.
struct TileTask {
  int64_t entry, kv_head, tile, split;
};

// The padding rows first <= r < last of one batch entry. They are numbered
// through all query heads: the padding rows of head 0 come first, then those of
// head 1, and so on.
struct PaddingTask {
  int64_t entry, first, last;
};

// The plan of one forward job. Immutable once made. Its numbers saturate
// (base/checked_math.h).
class KernelPlan {
 public:
  // The number of keys that are packed as one piece. It is a multiple of
  // kKeysPerSum, and of the keys of a panel (the block of keys that a
  // microkernel reads).
  static constexpr int64_t kKeysPerPackTask = 512;
  // The number of keys in a split. It is a multiple of tile_kv in every plan.
  static constexpr int64_t kKeysPerSplit = 4096;

  Isa isa = Isa::kScalar;  // the set that computes the products
  // The kind of all batch entries whose tiles are not direct, or a direct kind
  // if all are direct.
  TileKind tiled_kind = TileKind::kDirect;
  std::string_view variant = "tiled";  // the kernel's name in ExecutionStats
  bool any_direct = false;             // whether any entry is direct
  // Whether direct tiles copy rows of V to their slot first, to convert the
  // elements or to pad rows to whole SIMD vectors.
  bool converts_values = false;
  int64_t tile_q = 0;   // the largest of any entry
  int64_t tile_kv = 0;  // keys in a tile
  // The numbers of tasks in the whole job.
  int64_t tile_tasks = 0;
  int64_t merge_tasks = 0;
  int64_t padding_tasks = 0;
  // packed_keys_bytes is the size of the packed K of the kv head with most
  // keys. packed_head_bytes is the size of a place in memory for one packed kv
  // head: a cache line that says whether the place is taken, then K, then V.
  int64_t packed_keys_bytes = 0;
  int64_t packed_head_bytes = 0;
  int64_t partial_bytes = 0;
  int64_t packing_bytes = 0;  // of the HeadPacking of all kv heads
  SlotLayout slot_layout{};   // of one tile in progress
  int64_t slot_bytes = 0;

  // Return what task number `task` computes. `task` is below tile_tasks,
  // merge_tasks or padding_tasks. Tiles of the batch entries with most work
  // come first, and within a kv head the tiles that see most keys. A merge task
  // merges all splits of a tile, so its `split` is 0.
  TileTask Tile(int64_t task) const;
  TileTask Merge(int64_t task) const;
  PaddingTask Padding(int64_t task) const;

  // Returns the number of pieces in which the keys of one kv head are packed,
  // or 0 if they are not packed. The pieces do not depend on which tile packs
  // them.
  int64_t PackTasks(int64_t entry) const;
  PackTask Pack(int64_t entry, int64_t kv_head, int64_t piece) const;

  const EntryPlan& Entry(int64_t entry) const {
    return entries_[uniform_ ? 0 : static_cast<size_t>(entry)];
  }
  // Returns how many tile tasks one kv head of an entry has. Every split of a
  // tile counts.
  int64_t TilesOfHead(int64_t entry) const {
    return Entry(entry).q_tiles * Entry(entry).splits;
  }
  // Returns for how many packed kv heads the job needs memory at the same time,
  // if at most `threads` tiles are in progress. This is never more than
  // Slots(threads): tasks start in order, so of the kv heads that have begun
  // and are not finished, all but the last have a tile in progress. If the last
  // has none, the worker that ran its latest tile has not started another task
  // yet, so one tile fewer is in progress.
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
  friend KernelPlan MakeCostPlan(const AttentionProblem& problem,
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

  static KernelPlan Make(const AttentionProblem& problem,
                         const MachineInfo& machine, bool with_tasks);

  Table::Counts CountsOf(const EntryPlan& entry, int64_t kv_heads) const;

  int64_t v_head_dim_ = 0;
  int64_t rows_per_padding_task_ = 1;
  bool uniform_ = true;
  std::vector<EntryPlan> entries_;  // only one if uniform_
  Table table_;
};

// Returns the kind of tile for batch entries with more than MaxDirectRows query
// rows.
TileKind TiledKind(const AttentionParams& params, const MachineInfo& machine);

// Returns the most query rows with which a batch entry gets direct tiles, which
// read K and V in place. Returns -1 if keys are always packed. The rows of all
// query heads that share a kv head are counted together, without rows that see
// no key.
int64_t MaxDirectRows(const AttentionParams& params,
                      const MachineInfo& machine);

// Returns the plan of one entry.
EntryPlan PlanEntry(const AttentionParams& params, const BatchEntry& entry,
                    const MachineInfo& machine);

// Returns the numbers of rows from which on an entry may take less workspace
// than with one row less, in rising order. They count the rows that see a key,
// of all heads that share a kv head. Between two of these numbers, neither more
// rows nor more keys, heads or entries ever take less workspace.
std::vector<int64_t> RowsThatMayTakeLess(const AttentionParams& params,
                                         const MachineInfo& machine);

// Returns the plan of `problem`.
KernelPlan MakeKernelPlan(const AttentionProblem& problem,
                          const MachineInfo& machine);

// Returns a plan that is good only for WorkspaceBytes, PackedHeads, Slots and
// the members that are public. It takes no memory for each entry, and much less
// time if entries differ. The problem may be of any size.
KernelPlan MakeCostPlan(const AttentionProblem& problem,
                        const MachineInfo& machine);

}  // namespace attnd

#endif  // ATTND_CORE_KERNEL_PLAN_H_
